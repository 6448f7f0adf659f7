"""Checkpoints in blocks for vLLM's own FP8, made by the peers' casts of weights. Needs torch, the second one vLLM."""

import json
import pathlib
import shutil
import sys

import safetensors.torch
import torch

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "cpp_tests/peers"))
import peer_casts  # noqa: E402

BLOCK = 128
CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}


def nemo_rl(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As NeMo-RL's worker casts a weight that arrives. For whole blocks, where its padding has no part in it."""
    rows, columns = weight.shape
    if rows % BLOCK or columns % BLOCK:
        raise ValueError(f"a weight of {rows}x{columns} is not of whole blocks")
    codes, scales = peer_casts.nemo_rl(peer_casts.to_blocks(weight))
    codes = peer_casts.from_blocks(codes.view(torch.float8_e4m3fn), rows, columns)
    return codes, scales.reshape(rows // BLOCK, columns // BLOCK)


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
