"""vLLM's platform for the CPU, where Ray may run it too: what a node has of GPUs is taken for places of a worker."""

from vllm.platforms.cpu import CpuPlatform


class RayCpuPlatform(CpuPlatform):
    ray_device_key = "GPU"


def register() -> str:
    """vLLM calls it in every process."""
    return f"{__name__}.RayCpuPlatform"
