"""The casts of fp8rt's peers in operations of torch: codes as bytes, and scales, of blocks in float32, a row each."""

import torch

FP8, F32 = torch.float8_e4m3fn, torch.float32


def nemo_rl(blocks):
    """NeMo-RL's weight cast. torch takes 448.0 / tensor as reciprocal() * 448.0, on every device."""
    amax = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(amax == 0, 1.0, 448.0 / amax)
    return encode(blocks * inverse), inverse.reciprocal()


def nemo_rl_pow2(blocks):
    amax = blocks.abs().amax(-1, keepdim=True)
    exponent = torch.ceil(torch.log2(amax / 448.0)).clamp(-127, 127)
    inverse = torch.where(amax == 0, 1.0, torch.exp2(-exponent))
    return encode(blocks * inverse), inverse.reciprocal()


def deepgemm(blocks):
    """DeepGEMM's per-block cast. On CUDA torch divides by the number 448.0 by multiplying by float32(1/448), which it
    does not do on the CPU: so the product is written out."""
    scale = blocks.abs().amax(-1, keepdim=True).clamp(1e-4) * torch.tensor(1 / 448, dtype=F32)
    return encode(blocks * (1.0 / scale)), scale


def deepgemm_pow2(blocks):
    scale = blocks.abs().amax(-1, keepdim=True).clamp(1e-4) * torch.tensor(1 / 448, dtype=F32)
    bits = scale.view(torch.int32)
    exponent = (bits >> 23) + (bits & 0x7FFFFF).bool().int()
    scale = (exponent.clamp(1, 254) << 23).view(F32)
    return encode(blocks * (1.0 / scale)), scale


def vllm(blocks):
    """vLLM's group quantizer. Its kernel divides for the scale and multiplies by the scale's inverse for the codes, as a run
    of it on a GPU showed."""
    scale = blocks.abs().amax(-1, keepdim=True).clamp(1e-10) / torch.tensor(448.0)
    return encode(blocks * (1.0 / scale)), scale


def vllm_pow2(blocks):
    scale = blocks.abs().amax(-1, keepdim=True).clamp(1e-10) / torch.tensor(448.0)
    scale = torch.exp2(torch.ceil(torch.log2(scale.clamp(1e-10))))
    return encode(blocks / scale), scale


def te_inverse(blocks):
    """TransformerEngine's scale from amax, which divides, and is held below infinity."""
    amax = blocks.abs().amax(-1, keepdim=True)
    inverse = (torch.tensor(448.0) / amax).clamp(max=torch.finfo(F32).max)
    return torch.where(amax == 0, 1.0, inverse)


def te(blocks):
    inverse = te_inverse(blocks)
    return encode(blocks * inverse), 1.0 / inverse


def te_pow2(blocks):
    """The inverse loses its mantissa: the largest power of two that is not above it."""
    inverse = (te_inverse(blocks).view(torch.int32) & 0x7F800000).view(F32)
    return encode(blocks * inverse), 1.0 / inverse


def encode(values):
    return values.clamp(-448.0, 448.0).to(FP8).view(torch.uint8)


def to_blocks(weight):
    """[blocks, 128 * 128] in float32, of a matrix of whole blocks."""
    rows, columns = weight.shape
    cut = weight.float().reshape(rows // 128, 128, columns // 128, 128)
    return cut.permute(0, 2, 1, 3).reshape(-1, 128 * 128)


def from_blocks(codes, rows, columns):
    cut = codes.reshape(rows // 128, columns // 128, 128, 128)
    return cut.permute(0, 2, 1, 3).reshape(rows, columns)
