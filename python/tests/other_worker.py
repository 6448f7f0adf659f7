"""A worker of vLLM for the CPU whose second rank has another setting in its environment."""

import os

from vllm.v1.worker.cpu_worker import CPUWorker


class OtherWorker(CPUWorker):
    def init_device(self) -> None:
        if self.rank == 1:
            os.environ["FP8RT_CUTLASS_KERNEL"] = "other"
        super().init_device()
