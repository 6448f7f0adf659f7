"""From NeMo-RL's settings, as they are, to what `LLM(...)` and the environment take. Needs neither torch nor vLLM."""

import copy
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

METHOD = "fp8rt"
# What a checkpoint in blocks says of itself; whoever reads the configuration finds the same words here.
BLOCKS = {"fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
# A user's lists of layers that stay as they are, under the names that vLLM reads.
IGNORED = ("ignored_layers", "modules_to_not_convert", "ignore")
# Settings of NeMo-RL that are about FP8. The rest of a vllm_cfg is for NeMo-RL itself and need not reach the workers.
READ = (
    "precision",
    "use_deep_gemm",
    "num_first_layers_in_bf16",
    "num_last_layers_in_bf16",
    "pow2_weight_scaling_factors",
    "pow2_activation_scaling_factors",
    "use_weight_pow2_scale",
    "use_activation_pow2_scale",
    "quantization_ignored_layer_kws",
    "quantization_ignore_patterns",
    "is_mx",
    "kv_cache_dtype",
)
PREFIXES = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"
KV_CACHE = ("auto", "fp8", "fp8_e4m3")
# vLLM's kernels for experts that take weights in the order in which they arrive, so that a refit in place is right.
MOE_BACKEND = "triton"


class VllmSettings(NamedTuple):
    """`kwargs` for LLM(...), and what must be in the environment before vLLM is imported, of every worker too."""

    kwargs: dict[str, Any]
    environment: dict[str, str]


def vllm_kwargs(
    vllm_cfg: Mapping[str, Any], model_config: Any = None, user_kwargs: Mapping[str, Any] | None = None
) -> VllmSettings:
    """What NeMo-RL's `vllm_cfg` means for vLLM, merged with the user's own arguments of LLM(...).

    `vllm_cfg` may be the object around it too, whose `vllm_kwargs` are then the user's. `model_config` is the model's
    configuration: a mapping, an object of transformers, or the path of a config.json or of its directory. It is needed
    to check the settings here, before vLLM starts, and to see that a checkpoint is in FP8 already.

    With `precision` other than "fp8" the user's arguments come back as they were.
    """
    given, user = parted(vllm_cfg, user_kwargs)
    model = model_json(model_config)
    policy = check(given, model)
    settings = {key: value for key, value in given.items() if key in (*READ, METHOD)}
    if policy is None:
        return VllmSettings(user, {})
    own = quantization_config(settings)
    if in_blocks((model or {}).get("quantization_config") or {}):
        own["serialized"] = True
    return VllmSettings(merged_kwargs(user, own, settings), environment(settings, policy))


def parted(vllm_cfg: Mapping[str, Any], user_kwargs: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """NeMo-RL's settings with the user's rules, and the user's arguments."""
    around = vllm_cfg if "vllm_cfg" in vllm_cfg else {"vllm_cfg": vllm_cfg}
    user = {**plain(around.get("vllm_kwargs") or {}), **plain(user_kwargs or {})}
    inner = plain(around["vllm_cfg"])
    rules = plain(around.get(METHOD) or {}) | (inner.pop(METHOD, None) or {})
    given = {key: value for key, value in inner.items() if value is not None}
    return given | ({METHOD: rules} if rules else {}), user


def plain(value: Any) -> Any:
    """A copy in dicts and lists, of OmegaConf's containers too. What is none of these is kept as it is."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ListConfig":
        return [plain(item) for item in value]
    return value


def model_json(model_config: Any) -> dict[str, Any] | None:
    """The model's configuration as a policy reads it. A name on a hub is not looked up here."""
    if model_config is None:
        return None
    if isinstance(model_config, (str, os.PathLike)):
        path = pathlib.Path(model_config)
        path = path / "config.json" if path.is_dir() else path
        return json.loads(path.read_text()) if path.is_file() else None
    if hasattr(model_config, "hf_config"):
        model_config = model_config.hf_config
    if hasattr(model_config, "to_json_string"):
        return json.loads(model_config.to_json_string(use_diff=False))
    return plain(model_config)


def in_blocks(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says that it is FP8 in blocks of 128."""
    return config.get("quant_method") == "fp8" and config.get("weight_block_size") == BLOCKS["weight_block_size"]


def check(settings: Mapping[str, Any], config: dict[str, Any] | None) -> dict[str, Any] | None:
    """The library reads the settings, so that what is wrong is said here, by name. What it made of them; None without
    FP8.
    """
    from fp8rt.library import Policy

    kv_cache = settings.get("kv_cache_dtype", "auto")
    fp8 = settings.get("precision") == "fp8"
    if kv_cache not in KV_CACHE:
        raise ValueError(f"kv_cache_dtype is {kv_cache!r}, must be one of {', '.join(KV_CACHE)}")
    if kv_cache != "auto" and not fp8:
        raise ValueError(f"kv_cache_dtype is {kv_cache!r}: that needs precision \"fp8\", which is "
                         f"{settings.get('precision')!r}")
    if not fp8:
        return None
    if config is None:
        # The workers know the model; the number of its layers is checked there.
        settings = {key: value for key, value in settings.items() if key != "num_last_layers_in_bf16"}
    return json.loads(Policy(settings, config=config).text)


def quantization_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What travels in `hf_overrides` to every process: the method's own name, and the settings as they are."""
    return {"quant_method": METHOD, **copy.deepcopy(BLOCKS), "settings": copy.deepcopy(dict(settings))}


def environment(settings: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, str]:
    """DeepGEMM is off for vLLM's own layers as well where the settings say so.

    E8M0 is how vLLM's kernels for experts make scales of activations: powers of two or not. On weights of its own
    methods, where DeepGEMM runs them, vLLM then rounds the scales and quantizes once more; ours are never given to it.
    """
    result = {"VLLM_USE_DEEP_GEMM_E8M0": "1" if policy["activation"]["scale_format"] == "POW2" else "0"}
    inner = settings.get(METHOD) or {}
    allowed = settings.get("use_deep_gemm", inner.get("use_deep_gemm"))
    if allowed is not None:
        value = "1" if allowed else "0"
        result |= {"VLLM_USE_DEEP_GEMM": value, "VLLM_MOE_USE_DEEP_GEMM": value}
    # vLLM copies its own variables to Ray's workers, and those of these beginnings.
    result[PREFIXES] = added(os.environ.get(PREFIXES, ""), "FP8RT_")
    if "VLLM_PLUGINS" in os.environ:
        result["VLLM_PLUGINS"] = added(os.environ["VLLM_PLUGINS"], METHOD)
    return result


def added(items: str, item: str) -> str:
    """A list with commas, with the item in it."""
    return ",".join(dict.fromkeys([*filter(None, items.split(",")), item]))


def merged_kwargs(user: dict[str, Any], own: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    ours: dict[str, Any] = {"quantization": METHOD}
    if "kv_cache_dtype" in settings:
        ours["kv_cache_dtype"] = settings["kv_cache_dtype"]
    for key, value in ours.items():
        given = user.get(key)
        # The name of vLLM's own method, or none, is what NeMo-RL's users have; ours takes its place.
        expected = (None, value, "fp8") if key == "quantization" else (None, value)
        if given not in expected:
            raise ValueError(f"{key} is {given!r} in the arguments of LLM(...), the settings of FP8 need {value!r}")
    ours["moe_backend"] = MOE_BACKEND
    for key, given in moe_backends(user).items():
        if str(given).lower() not in ("auto", MOE_BACKEND):
            raise ValueError(f"{key} is {given!r} in the arguments of LLM(...), refits of experts need {MOE_BACKEND!r}")
    return {**user, **ours, "hf_overrides": merged_overrides(user.get("hf_overrides"), own)}


def moe_backends(user: dict[str, Any]) -> dict[str, Any]:
    """Both places of vLLM's arguments that may name one; the first counts."""
    inner = user.get("kernel_config")
    within = inner.get("moe_backend", "auto") if isinstance(inner, dict) else getattr(inner, "moe_backend", "auto")
    return {"moe_backend": user.get("moe_backend") or "auto", "kernel_config.moe_backend": within}


def merged_overrides(user: Any, own: dict[str, Any]) -> Any:
    """The user's overrides, with ours added."""
    if callable(user):
        return OverridesAfter(user, own)
    user = plain(user or {})
    return {**user, "quantization_config": merged_quantization(user.get("quantization_config"), own)}


def merged_quantization(user: Mapping[str, Any] | None, own: dict[str, Any]) -> dict[str, Any]:
    """A user's lists of layers and rules become rules; another key must not contradict ours."""
    user, result = plain(user or {}), copy.deepcopy(own)
    rules: dict[str, Any] = user.pop(METHOD, None) or {}
    if user.get("quant_method") in ("fp8", METHOD):
        user.pop("quant_method")
    kept = [name for key in IGNORED for name in user.pop(key, None) or []]
    for key, value in user.items():
        if result.setdefault(key, value) != value:
            raise ValueError(
                f"hf_overrides.quantization_config.{key} is {value!r}, the settings of FP8 need {result[key]!r}"
            )
    if kept:
        rules = {**rules, "rules": [*rules.get("rules", []), *map(keep_rule, dict.fromkeys(kept))]}
    if rules:
        result["settings"][METHOD] = joined_rules(rules, result["settings"].get(METHOD) or {})
    return result


def keep_rule(name: str) -> dict[str, str]:
    """An entry of `ignore` may be a regular expression from a name's beginning on; a rule's is of the whole name."""
    if name.startswith("re:"):
        return {"regex": f"(?:{name.removeprefix('re:')}).*", "decision": "keep"}
    return {"name": name, "decision": "keep"}


def joined_rules(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both lists of rules, the override's before; of other keys both may say the same only."""
    for key in (first.keys() & second.keys()) - {"rules"}:
        if first[key] != second[key]:
            raise ValueError(f"fp8rt.{key} is {first[key]!r} in hf_overrides and {second[key]!r} in the settings")
    rules = [*first.get("rules", []), *second.get("rules", [])]
    return {**second, **first, **({"rules": rules} if rules else {})}


@dataclass
class OverridesAfter:
    """The user's function of overrides, and then ours. A class, since vLLM pickles it into its processes."""

    user: Callable[[Any], Any]
    own: dict[str, Any]

    def __call__(self, config: Any) -> Any:
        config = self.user(config)
        # What the checkpoint says of itself is not the user's word.
        config.quantization_config = copy.deepcopy(self.own)
        return config
