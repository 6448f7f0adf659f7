"""From NeMo-RL's settings to what vLLM takes."""
from __future__ import annotations

import copy
from typing import Any

METHOD = "fp8rt"
# vLLM's own way to FP8, which must not run beside ours: DeepGEMM only where the settings ask for it, and then ours.
ENVIRONMENT = {"VLLM_USE_DEEP_GEMM": "0", "VLLM_MOE_USE_DEEP_GEMM": "0"}
# Of NeMo-RL's settings for vLLM, what the policy reads.
POLICY_KEYS = ("precision", "use_deep_gemm", "num_first_layers_in_bf16", "num_last_layers_in_bf16",
               "pow2_weight_scaling_factors", "pow2_activation_scaling_factors", "quantization_ignored_layer_kws", "is_mx",
               "kv_cache_dtype", "use_weight_pow2_scale", "use_activation_pow2_scale")


def quantization_config(settings: dict[str, Any]) -> dict[str, Any]:
    """The `quantization_config` that selects this plugin."""
    return {"quant_method": METHOD, "settings": copy.deepcopy(settings)}


def vllm_kwargs(vllm_cfg: dict[str, Any], hf_overrides: dict[str, Any] | None = None) -> tuple[dict, dict]:
    """(keywords of `LLM`, environment) for NeMo-RL's `vllm_cfg`, merged with the user's own `hf_overrides`.

    Settings that mean no FP8 give nothing but the user's. A user's own quantization_config for another method is an error.
    """
    overrides = copy.deepcopy(hf_overrides or {})
    if vllm_cfg.get("precision") != "fp8":
        return ({"hf_overrides": overrides} if overrides else {}), {}
    settings = {key: vllm_cfg[key] for key in vllm_cfg if key in POLICY_KEYS or _is_near(key)}
    theirs = overrides.get("quantization_config", {})
    if theirs.get("quant_method", METHOD) != METHOD:
        raise ValueError(f"hf_overrides asks for quantization {theirs['quant_method']!r}, precision fp8 for {METHOD!r}")
    merged = quantization_config(settings)
    merged["settings"].update(copy.deepcopy(theirs.get("settings", {})))
    overrides["quantization_config"] = {**copy.deepcopy(theirs), **merged}
    return {"hf_overrides": overrides, "quantization": METHOD}, dict(ENVIRONMENT)


def _is_near(key: str) -> bool:
    """Whether the policy may know a typing error here: it is the policy's to say which key is meant."""
    return any(_distance(key, known) <= 2 for known in POLICY_KEYS)


def _distance(a: str, b: str) -> int:
    """Edits from one word to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]
