"""A real vLLM engine whose two ranks are Ray actors on two nodes of a cluster on this machine, without a GPU; and a
node that is set up otherwise, which every rank refuses by name.
"""

import contextlib
import os
import pathlib
import socket
import tempfile
import unittest

import engines

FOLDER = tempfile.TemporaryDirectory()
ROOT = pathlib.Path(FOLDER.name)
engines.prepare_environment(ROOT)
# vLLM's platform for the CPU does not know Ray.
engines.install_points(
    ROOT / "installed", "ray_platform", {"vllm.platform_plugins": {"ray_platform": "ray_platform:register"}}
)
os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1", "RAY_USAGE_STATS_ENABLED": "0"}

import ray  # noqa: E402
from engines import ask, plugin, small_engine  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

import fp8rt_vllm  # noqa: E402

CONFIG = engines.SMALL
BUCKET_BYTES = 100_000
NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 << 20}
OTHER = {"FP8RT_CUTLASS_KERNEL": "other", "VLLM_USE_DEEP_GEMM_E8M0": "1"}


@contextlib.contextmanager
def environment(**variables: str):
    """A node has the variables of the process that starts it."""
    kept = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def start():
    """vLLM takes the port from there; else it is the same one at every start, and memory is left of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["VLLM_DP_MASTER_PORT"] = str(probe.getsockname()[1])
    return small_engine(ROOT / "bf16", tensor_parallel_size=2, distributed_executor_backend="ray", **plugin())


class TwoNodesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.addClassCleanup(FOLDER.cleanup)
        engines.write_checkpoints(ROOT, CONFIG, 2)
        cls.cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        cls.addClassCleanup(cls.cluster.shutdown)

    def setUp(self):
        """A job of its own, with which the workers of an engine that did not start end too."""
        ray.init(address=self.cluster.address, log_to_driver=False)
        self.addCleanup(ray.shutdown)

    def node(self, **variables: str) -> None:
        """A second one beside the head, for one test."""
        with environment(**variables):
            node = self.cluster.add_node(**NODE)
        self.cluster.wait_for_nodes()
        self.addCleanup(self.cluster.remove_node, node)

    def test_an_engine_of_two_nodes(self):
        self.node()
        llm = start()
        self.addCleanup(llm.llm_engine.engine_core.shutdown)
        self.assertEqual(len(set(ask(llm, "node_of_ray"))), 2)
        fresh, digests = engines.generate(llm, CONFIG["vocab_size"]), ask(llm, "digests")
        for version in (1, 2):
            ask(llm, "refit_in_buckets", version, BUCKET_BYTES)
            self.assertEqual(ask(llm, "digests") == digests, version == 2)
        self.assertEqual(engines.generate(llm, CONFIG["vocab_size"]), fresh)
        found = fp8rt_vllm.fingerprint(llm)["weights"]
        for name, shards in engines.trainer_fingerprints(CONFIG, 2, 2).items():
            self.assertEqual(found[name], shards, name)

    def test_a_node_with_other_settings_is_refused_by_name(self):
        """What a node has of its own stays when vLLM brings its workers the environment of the first process."""
        self.node(**OTHER)
        with self.assertRaises(ray.exceptions.RayTaskError) as raised:
            start()
        said = str(raised.exception)
        self.assertIn("DisagreementError: the ranks of this model are not set up alike: ", said)
        self.assertIn("environment FP8RT_CUTLASS_KERNEL is not set in rank 0, other in rank 1", said)
        self.assertIn("environment VLLM_USE_DEEP_GEMM_E8M0 is False in rank 0, True in rank 1", said)


if __name__ == "__main__":
    unittest.main()
