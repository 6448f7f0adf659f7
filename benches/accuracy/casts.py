"""Checkpoints in blocks for vLLM's own FP8, made by the peers' casts of weights. Needs torch, the second one vLLM."""

import json
import pathlib
import shutil

import safetensors.torch
import torch

BLOCK, LARGEST = 128, 448.0
CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}


def nemo_rl(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As NeMo-RL's worker casts a weight that arrives, in float32 and torch's own operations: the factor is 448 / amax,
    the scale its reciprocal. For whole blocks, where its padding has no part in it.
    """
    rows, columns = weight.shape
    if rows % BLOCK or columns % BLOCK:
        raise ValueError(f"a weight of {rows}x{columns} is not of whole blocks")
    blocks = weight.float().unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True)
    factor = torch.where((amax == 0) | amax.isinf(), 1.0, LARGEST / amax)
    codes = (blocks * factor).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes.reshape(rows, columns), factor.reciprocal()[:, 0, :, 0].contiguous()


def vllm(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's own cast of weights in blocks."""
    from vllm.utils.deep_gemm import per_block_cast_to_fp8

    return per_block_cast_to_fp8(weight, [BLOCK, BLOCK], use_ue8m0=False)


CASTS = {"nemo_rl": nemo_rl, "vllm": vllm}


def write_checkpoint(model: pathlib.Path, folder: pathlib.Path, cast: str, device: str) -> None:
    """The linears of a checkpoint of bf16 in codes and scales."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": CONFIG}))
    tensors = {}
    for name, weight in safetensors.torch.load_file(model / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            codes, scales = CASTS[cast](weight.to(device))
            tensors |= {name: codes.cpu(), f"{name}_scale_inv": scales.cpu()}
        else:
            tensors[name] = weight
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(model / "prompts.json", folder)
