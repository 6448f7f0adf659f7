"""What vLLM calls in every process, before a model is built."""


def register() -> None:
    """Registers the quantization method "fp8rt". May be called any number of times."""
    from vllm.model_executor.layers.quantization import register_quantization_config

    from fp8rt_vllm.config import METHOD, Fp8rtConfig

    register_quantization_config(METHOD)(Fp8rtConfig)
