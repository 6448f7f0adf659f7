"""fp8rt in vLLM, by its published extension points: see README.md."""
from fp8rt_vllm.settings import vllm_kwargs

__all__ = ["load_weights", "vllm_kwargs"]


def load_weights(weights, model_runner) -> None:
    """A bucket of weights by name, bf16 or quantized, into the running model: see fp8rt_vllm.refit."""
    from fp8rt_vllm.refit import load_weights as load

    load(weights, model_runner)
