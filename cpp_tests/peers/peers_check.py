#!/usr/bin/env python3
"""Compare fp8rt with what its peers compute, byte for byte, on random bf16 blocks.

Each peer's cast is written out in operations of torch (peer_casts.py), which run on the CPU here. A peer that is a CUDA
kernel (vLLM's op, TransformerEngine's cast) is thus restated and not run. Exits 77 without torch, 1 on any difference.
"""
import sys

try:
    import torch
except ImportError as error:
    print(f"peers_check.py cannot run: {error}")
    sys.exit(77)

import fp8rt_ctypes as fp8rt
import peer_casts as peers

F32 = torch.float32
ROWS, COLUMNS, ROUNDS = 1024, 2048, 8


def divided(blocks):
    """amax / 448 with no floor, to show that these blocks tell formulas apart."""
    return None, blocks.abs().amax(-1, keepdim=True) / torch.tensor(448.0)


def random_weight(generator):
    """Blocks whose amax is anywhere in 1e-30 to 1e30; every 97th block is zero."""
    magnitudes = 10 ** (torch.rand(ROWS // 128, COLUMNS // 128, generator=generator, dtype=torch.float64) * 60 - 30.6)
    magnitudes.view(-1)[96::97] = 0
    spread = magnitudes.float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    return (torch.randn(ROWS, COLUMNS, generator=generator) * spread).bfloat16()


def random_activation(generator):
    magnitudes = 10 ** (torch.rand(ROWS, COLUMNS // 128, generator=generator, dtype=torch.float64) * 60 - 30.6)
    magnitudes.view(-1)[96::97] = 0
    values = torch.randn(ROWS, COLUMNS, generator=generator)
    return (values * magnitudes.float().repeat_interleave(128, 1)).bfloat16()


def quantized(library, subject, recipe, scale_format, source):
    """fp8rt's codes and scales."""
    rows = ROWS // 128 if subject == "weight" else ROWS
    codes = torch.empty(ROWS, COLUMNS, dtype=torch.uint8)
    scales = torch.empty(rows, COLUMNS // 128, dtype=F32)
    views = (fp8rt.matrix(source.data_ptr(), fp8rt.BF16, ROWS, COLUMNS),
             fp8rt.matrix(codes.data_ptr(), fp8rt.E4M3, ROWS, COLUMNS),
             fp8rt.matrix(scales.data_ptr(), fp8rt.F32, rows, COLUMNS // 128))
    library.quantize(f"fp8rt_quantize_{subject}", recipe, scale_format, *views)
    return codes, scales


def expected(subject, cast, source):
    if subject == "weight":
        codes, scales = cast(peers.to_blocks(source))
        scales = scales.reshape(ROWS // 128, COLUMNS // 128)
        return codes if codes is None else peers.from_blocks(codes, ROWS, COLUMNS), scales
    codes, scales = cast(source.float().reshape(-1, 128))
    return codes if codes is None else codes.reshape(ROWS, COLUMNS), scales.reshape(ROWS, COLUMNS // 128)


def differing(ours, theirs):
    return int((ours.view(torch.int32) != theirs.contiguous().view(torch.int32)).sum())


PAIRS = (
    ("NEMO_RL FP32", "weight", fp8rt.NEMO_RL, fp8rt.FP32, peers.nemo_rl),
    ("NEMO_RL POW2", "weight", fp8rt.NEMO_RL, fp8rt.POW2, peers.nemo_rl_pow2),
    ("DEEPGEMM FP32", "weight", fp8rt.DEEPGEMM, fp8rt.FP32, peers.deepgemm),
    ("DEEPGEMM POW2", "weight", fp8rt.DEEPGEMM, fp8rt.POW2, peers.deepgemm_pow2),
    ("TE FP32", "weight", fp8rt.TE, fp8rt.FP32, peers.te),
    ("TE POW2", "weight", fp8rt.TE, fp8rt.POW2, peers.te_pow2),
    ("TE FP32", "activation", fp8rt.TE, fp8rt.FP32, peers.te),
    ("TE POW2", "activation", fp8rt.TE, fp8rt.POW2, peers.te_pow2),
    ("VLLM FP32", "activation", fp8rt.VLLM, fp8rt.FP32, peers.vllm),
    ("VLLM POW2", "activation", fp8rt.VLLM, fp8rt.POW2, peers.vllm_pow2),
)
# How far a row of the table of recipes is shown to be right by what ran here.
SHOWN = {
    "NEMO_RL": "confirmed on the CPU: the operations are torch's own, in the order of the peer",
    "DEEPGEMM": "confirmed, with amax / 448.0 written as the product with float32(1/448) that torch takes on CUDA",
    "VLLM": "agrees with the kernel's formula restated; the kernel itself needs a GPU",
    "TE": "agrees with the kernel's formula restated; the kernel itself needs a GPU",
}


def compare(library, pair):
    """Differing scale words and codes, how many there were, and how many words division alone would have changed."""
    _, subject, recipe, scale_format, cast = pair
    generator = torch.Generator().manual_seed(20)
    counts = [0, 0, 0, 0, 0]
    for _ in range(ROUNDS):
        source = (random_weight if subject == "weight" else random_activation)(generator)
        codes, scales = quantized(library, subject, recipe, scale_format, source)
        their_codes, their_scales = expected(subject, cast, source)
        _, divided_scales = expected(subject, divided, source)
        round_counts = (differing(scales, their_scales), int((codes != their_codes).sum()), scales.numel(),
                        codes.numel(), differing(scales, divided_scales))
        counts = [total + count for total, count in zip(counts, round_counts)]
    return counts


def main():
    library = fp8rt.Library()
    print(f"torch {torch.__version__} on the CPU, {ROUNDS} matrices of {ROWS}x{COLUMNS} bf16 for each line")
    failed = set()
    for pair in PAIRS:
        scales, codes, all_scales, all_codes, by_division = compare(library, pair)
        line = f"{pair[0]:14} {pair[1]:10} scale words differ {scales} of {all_scales}, codes {codes} of {all_codes}"
        if pair[3] == fp8rt.FP32:
            line += f"; amax / 448 in their place would differ in {by_division} words"
        print(line, flush=True)
        if scales or codes:
            failed.add(pair[0].split()[0])
    for recipe, shown in SHOWN.items():
        print(f"{recipe}: {'REFUTED, see above' if recipe in failed else shown}")
    library.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
