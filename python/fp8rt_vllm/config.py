"""The quantization config. Importing this module loads the library: a process without it fails, and never runs vLLM's
own FP8 in silence."""
from __future__ import annotations

import json
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.fp8 import Fp8Config

from fp8rt_vllm import library
from fp8rt_vllm.linear import Fp8rtLinearMethod
from fp8rt_vllm.settings import METHOD

library.library()
logger = init_logger(__name__)
BLOCK = [128, 128]


class Fp8rtConfig(Fp8Config):
    """Settings that a policy of fp8rt decides by; `hf_overrides.quantization_config` carries them to every process."""

    def __init__(self, settings: dict[str, Any] | None = None, batch_invariant: bool = False) -> None:
        super().__init__(is_checkpoint_fp8_serialized=True, activation_scheme="dynamic", ignored_layers=[],
                         weight_block_size=BLOCK)
        self.settings = settings or {"precision": "fp8"}
        self.batch_invariant = batch_invariant
        # DeepGEMM's kernels are the library's own, if the settings allow them.
        self.use_deep_gemm = False
        self.prefixes: dict[str, str] = {}
        self._policy: library.Policy | None = None

    @classmethod
    def get_name(cls) -> str:
        return METHOD

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Fp8rtConfig:
        known = {"quant_method", "settings", "batch_invariant"}
        unknown = sorted(set(config) - known)
        if unknown:
            raise ValueError(f"quantization_config of {METHOD} has {unknown}, known are {sorted(known)}")
        return cls(config.get("settings"), bool(config.get("batch_invariant", False)))

    # The policy is a handle of the library, so it does not travel: each process makes its own.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_policy": None}

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        renamed = getattr(hf_to_vllm_mapper, "orig_to_new_prefix", {})
        self.prefixes |= {engine: checkpoint for checkpoint, engine in renamed.items() if engine}

    @property
    def policy(self) -> library.Policy:
        if self._policy is None:
            config = get_current_vllm_config().model_config.hf_config.to_dict()
            config.pop("quantization_config", None)
            self._policy = library.Policy(
                json.dumps(self.settings), json.dumps(config, default=str),
                json.dumps(self.packed_modules_mapping) if self.packed_modules_mapping else None,
                json.dumps(self.prefixes) if self.prefixes else None)
            for warning in self._policy.warnings:
                logger.warning("fp8rt: %s", warning)
            logger.info("fp8rt: policy %s, %s", self._policy.fingerprint, library.build_info())
        return self._policy

    def get_quant_method(self, layer: torch.nn.Module, prefix: str):
        if isinstance(layer, LinearBase):
            decision = self.policy.decide_module(prefix)
            logger.debug("fp8rt: %s is %s: %s", prefix, "FP8" if decision.fp8 else "kept", decision.reason)
            return Fp8rtLinearMethod(self, prefix, decision) if decision.fp8 else UnquantizedLinearMethod()
        if hasattr(layer, "moe_config"):
            raise ValueError(f"fp8rt: {prefix} is a layer of experts, which this version does not run")
        return None
