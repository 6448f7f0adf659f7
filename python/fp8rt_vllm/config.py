"""The quantization configurations. At module level, since vLLM pickles them into the engine and the workers: a process
that cannot import this module, or load the library, fails there.
"""

import copy
import json
from typing import Any

from vllm.config.vllm import get_current_vllm_config_or_none
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention, MLAAttention
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.fp8 import Fp8Config
from vllm.model_executor.layers.quantization.kv_cache import is_quantized_kv_cache

from fp8rt import library

from . import agreement, guard, mla, sleeping
from .health import Health
from .settings import BLOCKS, METHOD, in_blocks

library.load()
# A process that got a configuration from another one may not have loaded the plugin itself.
guard.register()
sleeping.register()
logger = init_logger(f"vllm.{__name__}")

# The library's kernels begin with Ampere, its FP8 with Ada.
MIN_CAPABILITY = 89
OWN_KEYS = ("settings", "serialized", "batch_invariant")


class Fp8rtConfig(Fp8Config):
    """`quant_method: "fp8rt"`. Which layers are FP8, and how, is the policy's word alone."""

    def __init__(
        self, settings: dict[str, Any], serialized: bool = False, batch_invariant: bool | None = None
    ) -> None:
        super().__init__(
            is_checkpoint_fp8_serialized=True,
            activation_scheme=BLOCKS["activation_scheme"],
            weight_block_size=list(BLOCKS["weight_block_size"]),
        )
        # Of vLLM's kernels, which our layers do not use.
        self.use_deep_gemm = False
        self.settings = copy.deepcopy(settings)
        # Whether the checkpoint holds codes and scales, so that vLLM's loader must find parameters for both.
        self.serialized = serialized
        self.hf_config: dict[str, Any] | None = None
        # From the engine's names to the checkpoint's.
        self.prefixes: dict[str, str] = {}
        # What was decided for each module, and why: see `report`.
        self.decisions: dict[str, library.Decision] = {}
        # Whether what the layers hold may be used.
        self.health = Health()
        self._batch_invariant = batch_invariant
        self._policy: library.Policy | None = None

    @classmethod
    def get_name(cls) -> str:
        return METHOD

    @classmethod
    def get_min_capability(cls) -> int:
        return MIN_CAPABILITY

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Fp8rtConfig":
        """From `settings`, of any kind that a policy reads; without them from the words of a checkpoint in blocks."""
        config = copy.deepcopy(config)
        serialized = config.pop("serialized", config.get("quant_method") == "fp8")
        batch_invariant = config.pop("batch_invariant", None)
        settings = config.pop("settings", None)
        if settings is None:
            settings = {**BLOCKS, **config, "quant_method": "fp8"}
        else:
            check_beside(config)
        return cls(settings, serialized, batch_invariant)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """`quantization="fp8rt"` takes a checkpoint of "fp8" in blocks; without that it stays vLLM's."""
        return METHOD if user_quant == METHOD and in_blocks(hf_quant_cfg) else None

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        if hf_config is not None:
            self.hf_config = json.loads(hf_config.to_json_string(use_diff=False))
            self._policy = None
        for warning in self.policy.warnings:
            logger.warning("fp8rt: %s", warning)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Of several names in the checkpoint that the engine calls the same, the first one counts."""
        for checkpoint, engine in hf_to_vllm_mapper.orig_to_new_prefix.items():
            if engine is not None:
                self.prefixes.setdefault(engine, checkpoint)
        self._policy = None

    @property
    def policy(self) -> library.Policy:
        if self._policy is None:
            self._policy = library.Policy(self.settings, self.hf_config, prefixes=self.prefixes or None)
        return self._policy

    @property
    def backends(self) -> int:
        return self.policy.backends

    @property
    def batch_invariant(self) -> bool:
        """The checkpoint's or the user's word; else vLLM's switch for all of its kernels."""
        from vllm import envs

        return bool(envs.VLLM_BATCH_INVARIANT) if self._batch_invariant is None else self._batch_invariant

    def __getstate__(self) -> dict[str, Any]:
        """The other process resolves the settings again, with the library that it has."""
        return {**self.__dict__, "_policy": None}

    def decide(self, prefix: str) -> library.Decision:
        decision = self.policy.decide_module(prefix, dict(self.packed_modules_mapping))
        if self.decisions.get(prefix) != decision:
            self.decisions[prefix] = decision
            logger.debug("fp8rt: %s %s: %s", prefix, "FP8" if decision.fp8 else "kept", decision.reason)
        return decision

    def report(self) -> dict[str, str]:
        """What runs how, by module."""
        return {
            prefix: f"{'fp8' if decision.fp8 else 'kept'}: {decision.reason}"
            for prefix, decision in self.decisions.items()
        }

    def check_switches(self) -> None:
        """Settings without DeepGEMM are about vLLM's own layers too, and those know only the environment."""
        from vllm import envs

        if json.loads(self.policy.text)["use_deep_gemm"] is not False:
            return
        for name in ("VLLM_USE_DEEP_GEMM", "VLLM_MOE_USE_DEEP_GEMM"):
            if getattr(envs, name):
                raise ValueError(f"use_deep_gemm is false, and {name} is not 0 in the environment of this process")

    def choose_sleep(self) -> None:
        """What a sleep discards must be known to the models of this process."""
        config = get_current_vllm_config_or_none()
        if config is not None and config.model_config is not None:
            sleeping.choose(config.model_config)

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        agreement.check_once(self)
        self.choose_sleep()
        self.check_switches()
        if isinstance(layer, LinearBase):
            decision = self.decide(prefix)
            if not decision.fp8:
                return UnquantizedLinearMethod()
            from .linear import Fp8rtLinearMethod

            return Fp8rtLinearMethod(self, prefix, decision)
        if isinstance(layer, RoutedExperts):
            from . import experts

            decision = self.decide(prefix)
            if not decision.fp8:
                return experts.kept(layer, prefix)
            return experts.Fp8rtMoEMethod(self, layer, prefix, decision)
        if isinstance(layer, Attention):
            from .kv_cache import Fp8rtKVCacheMethod

            return Fp8rtKVCacheMethod(self)
        if isinstance(layer, MLAAttention):
            mla.check(layer, is_quantized_kv_cache(layer.kv_cache_dtype), attention_config())
            mla.follow(layer)
        return super().get_quant_method(layer, prefix)


class Fp8TakeOverConfig(Fp8rtConfig):
    """Registered under vLLM's name "fp8" where that is asked for: blocks come here, the rest is vLLM's as before."""

    @classmethod
    def get_name(cls) -> str:
        return "fp8"

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        return None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Fp8Config:
        if not in_blocks(config):
            return Fp8Config.from_config(config)
        return super().from_config(config)


def attention_config() -> Any:
    """None when no layer is being made."""
    return getattr(get_current_vllm_config_or_none(), "attention_config", None)


def check_beside(config: dict[str, Any]) -> None:
    """Beside `settings`, a configuration repeats what blocks are, and may say nothing else."""
    for key, value in config.items():
        if key == "quant_method":
            continue
        if key not in BLOCKS:
            raise ValueError(f"quantization_config: {key} is not known beside settings; {METHOD} knows "
                             f"{', '.join([*OWN_KEYS, *BLOCKS])}")
        if value != BLOCKS[key]:
            raise ValueError(f"quantization_config: {key} is {value!r}, must be {BLOCKS[key]!r}")
