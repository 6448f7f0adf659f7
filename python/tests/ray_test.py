"""A Ray cluster of two nodes on this machine, without a GPU: actors get their configuration, environment and plugin as
vLLM's workers do, and one that is set up otherwise is refused by name, in every rank.
"""

import os
import pathlib
import pickle
import socket
import sys
import tempfile
import unittest

import engines
import ray
from ray.cluster_utils import Cluster
from vllm.ray.ray_env import get_env_vars_to_copy

RANKS = 2


@ray.remote(num_cpus=1)
class Worker:
    """What vLLM's Ray worker does before a model is built, as far as no GPU is needed."""

    def node(self):
        return ray.get_runtime_context().get_node_id()

    def start(self, pickled, rank, port):
        from vllm.plugins import load_general_plugins

        load_general_plugins()
        from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
        from vllm.distributed import init_distributed_environment
        from vllm.model_executor.layers.linear import LinearBase
        from vllm.model_executor.layers.quantization import get_quantization_config

        config = pickle.loads(pickled)
        assert type(config) is get_quantization_config("fp8rt")
        with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu")), check_compile=False):
            init_distributed_environment(RANKS, rank, f"tcp://127.0.0.1:{port}", 0, "gloo")
            try:
                config.get_quant_method(LinearBase.__new__(LinearBase), "lm_head")
            except RuntimeError as error:
                return f"{type(error).__name__}: {error}"
        return "agreed"

    def plugins(self):
        from vllm.plugins import load_general_plugins

        load_general_plugins()
        from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

        return "fp8rt" in QUANTIZATION_METHODS


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class TwoNodes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        engines.install(pathlib.Path(folder.name, "installed"))
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        cls.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cls.addClassCleanup(cls.cluster.shutdown)
        cls.cluster.add_node(num_cpus=1)
        ray.init(address=cls.cluster.address, log_to_driver=False)
        cls.addClassCleanup(ray.shutdown)

    def workers(self, environments):
        """One on each node, with the variables that vLLM copies, and those of its own."""
        copied = {name: os.environ[name] for name in get_env_vars_to_copy() if name in os.environ}
        workers = [
            Worker.options(scheduling_strategy="SPREAD", runtime_env={"env_vars": copied | more}).remote()
            for more in environments
        ]
        for worker in workers:
            self.addCleanup(ray.kill, worker)
        self.assertEqual(len(set(ray.get([worker.node.remote() for worker in workers]))), RANKS)
        return workers

    def start(self, settings, environments):
        from fp8rt_vllm.config import Fp8rtConfig

        workers, port = self.workers(environments), free_port()
        pickled = [pickle.dumps(Fp8rtConfig(each)) for each in settings]
        return ray.get([worker.start.remote(pickled[rank], rank, port) for rank, worker in enumerate(workers)])

    def test_one_set_up(self):
        self.assertEqual(self.start([{"precision": "fp8"}] * RANKS, [{}] * RANKS), ["agreed"] * RANKS)

    def test_another_setting_and_environment(self):
        settings = [{"precision": "fp8"}, {"precision": "fp8", "pow2_weight_scaling_factors": True}]
        for said in self.start(settings, [{}, {"FP8RT_CUTLASS_KERNEL": "other"}]):
            self.assertIn("DisagreementError", said)
            self.assertIn('setting weight.scale_format is "FP32" in rank 0, "POW2" in rank 1', said)
            self.assertIn("environment FP8RT_CUTLASS_KERNEL is not set in rank 0, other in rank 1", said)

    def test_a_filter_of_plugins_leaves_the_method_unknown(self):
        workers = self.workers([{}, {"VLLM_PLUGINS": "another"}])
        self.assertEqual(ray.get([worker.plugins.remote() for worker in workers]), [True, False])


if __name__ == "__main__":
    sys.exit(unittest.main())
