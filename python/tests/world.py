"""A vLLM of one rank, or of a rank of many that do not talk, without a GPU: layers are built and loaded on the CPU."""

import contextlib
import types
from unittest import mock

import torch


@contextlib.contextmanager
def world(load_format: str = "auto", rank: int = 0, ranks: int = 1):
    """vLLM's current configuration, and tensor-parallel ranks as every module that asks for them sees them."""
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.model_executor import parameter
    from vllm.model_executor.layers import linear

    config = VllmConfig(device_config=DeviceConfig(device="cpu"))
    config.load_config.load_format = load_format
    config.scheduler_config.max_num_batched_tokens = 64
    config.model_config = types.SimpleNamespace(dtype=torch.bfloat16)
    names = {"get_tensor_model_parallel_rank": rank, "get_tensor_model_parallel_world_size": ranks}
    with contextlib.ExitStack() as stack:
        for module in (parameter, linear):
            for name, value in names.items():
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, return_value=value))
        stack.enter_context(set_current_vllm_config(config, check_compile=False))
        yield config


@contextlib.contextmanager
def building():
    """As vLLM is while it builds a model in BF16."""
    distributed()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def distributed() -> None:
    """The process groups of one rank, for models that ask for them; once a process."""
    import tempfile

    from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state

    if parallel_state._TP is None:
        file = tempfile.NamedTemporaryFile(delete=False)  # noqa: SIM115
        init_distributed_environment(1, 0, f"file://{file.name}", 0, "gloo")
        initialize_model_parallel(1, 1)


class NoAttention(torch.nn.Module):
    """Attention asks for a device."""

    def __init__(self, *_args, **_keys):
        super().__init__()


def config(settings: dict | None = None, **keys):
    """A configuration of the plugin, as a checkpoint's or a user's keys make it."""
    from fp8rt_vllm.config import Fp8rtConfig

    made = Fp8rtConfig.from_config({"quant_method": "fp8rt", "settings": settings or {"precision": "fp8"}, **keys})
    made.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    return made
