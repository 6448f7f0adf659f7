"""vLLM calls `register` in every process: front end, engine core and each worker, Ray's too, and may call it again."""

import os

METHOD = "fp8rt"
# Set to 1, checkpoints of vLLM's own "fp8" in blocks of 128 come here too.
TAKE_OVER = "FP8RT_TAKE_OVER_FP8"


def register() -> None:
    """Makes `quant_method: "fp8rt"` known. vLLM swallows an error here; its own unknown-method error follows."""
    from vllm.model_executor.layers.quantization import register_quantization_config

    from . import config

    register_quantization_config(METHOD)(config.Fp8rtConfig)
    if takes_over():
        register_quantization_config("fp8")(config.Fp8TakeOverConfig)


def takes_over() -> bool:
    value = os.environ.get(TAKE_OVER, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{TAKE_OVER} is {value!r}, must be 0 or 1")
    return value == "1"
