"""A weight cast as people write it in Triton: a program for each block of 128x128."""
import triton
import triton.language as tl


@triton.jit
def block_cast_kernel(w, codes, scales, k, blocks_k, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.load(w + row * k + column).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values)), 1e-10) / 448.0
    tl.store(codes + row * k + column, tl.clamp(values * (1.0 / scale), -448.0, 448.0).to(tl.float8e4nv))
    tl.store(scales + tl.program_id(0) * blocks_k + tl.program_id(1), scale)
