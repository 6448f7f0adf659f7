"""Ranks compare their set-up: real processes and a real CPU group of vLLM's world."""

import contextlib
import datetime
import json
import multiprocessing
import os
import queue as queues
import re
import socket
import time
import unittest
import unittest.mock

from fp8rt import library
from fp8rt_vllm import agreement

RANKS = 3
# Seconds that ranks wait here, and what a rank does that never compares.
PATIENCE = 15
ENDS, STAYS = "ends", "stays"


def rank_main(rank, port, settings, environment, queue):
    """As a worker: its environment, vLLM's groups, then the first layer, unless the settings say that there is none."""
    os.environ.update(environment)
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment
    from vllm.model_executor.layers.linear import LinearBase

    from fp8rt_vllm.config import Fp8rtConfig

    try:
        with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu")), check_compile=False):
            init_distributed_environment(RANKS, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
            agreement.PATIENCE = datetime.timedelta(seconds=PATIENCE)
            if settings in (ENDS, STAYS):
                queue.put((rank, settings))
                time.sleep(0 if settings == ENDS else 4 * PATIENCE)
                return
            # Only rank 0 makes a configuration more, as with a drafter: nobody waits for it.
            config = Fp8rtConfig(settings)
            began = time.monotonic()
            for _ in range(2 if rank == 0 else 1):
                Fp8rtConfig(settings).get_quant_method(object(), "model.norm")
            config.get_quant_method(LinearBase.__new__(LinearBase), "lm_head")
        queue.put((rank, "agreed"))
    except agreement.DisagreementError as error:
        queue.put((rank, f"{error}; it took {time.monotonic() - began:.0f} s"))
    except BaseException as error:
        queue.put((rank, f"unexpected {error!r}"))


def run(settings, environments=None):
    """What each rank says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    environments = environments or [{}] * RANKS
    ranks = [
        context.Process(target=rank_main, args=(rank, port, settings[rank], environments[rank], queue))
        for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    said = {}
    # A process that died before it said anything is not waited for.
    while len(said) < RANKS and (any(process.is_alive() for process in ranks) or not queue.empty()):
        with contextlib.suppress(queues.Empty):
            said.update([queue.get(timeout=1)])
    for process in ranks:
        process.join(60)
    return [said.get(rank, "died") for rank in range(RANKS)]


class Ranks(unittest.TestCase):
    def test_equal_settings_in_another_order(self):
        settings = {"precision": "fp8", "num_first_layers_in_bf16": 1}
        turned = dict(reversed(settings.items()))
        self.assertEqual(run([settings, turned, settings]), ["agreed"] * RANKS)

    def test_one_rank_with_other_settings_and_another_environment(self):
        settings = [{"precision": "fp8"}, {"precision": "fp8"}, {"precision": "fp8", "num_first_layers_in_bf16": 1}]
        environments = [{}, {"VLLM_USE_DEEP_GEMM_E8M0": "0"}, {}]
        for said in run(settings, environments):
            self.assertIn("setting num_first_layers_in_bf16 is 0 in ranks 0-1, 1 in rank 2", said)
            self.assertIn("environment VLLM_USE_DEEP_GEMM_E8M0 is True in ranks 0, 2, False in rank 1", said)
            self.assertNotIn("library", said)

    def test_a_rank_that_fails_is_not_waited_for(self):
        settings = [{"precision": "fp8"}, {"precision": "fp8"}, {"precision": "fp8", "num_first_layer_in_bf16": 1}]
        *others, failed = run(settings)
        self.assertIn("num_first_layers_in_bf16", failed)
        for said in others:
            self.assertRegex(said, "rank 2 failed: Fp8rtError: .*num_first_layers_in_bf16")


    def test_a_rank_that_never_compares(self):
        """Without the plugin, vLLM raises there before the first layer: the process ends, or an actor lives on."""
        for absent in (ENDS, STAYS):
            with self.subTest(absent):
                *others, last = run([{"precision": "fp8"}, {"precision": "fp8"}, absent])
                self.assertEqual(last, absent)
                for said in others:
                    self.assertIn(f"did not all compare their set-up within {PATIENCE} s", said)
                    self.assertIn("without the plugin it cannot run fp8rt", said)
                    self.assertLess(int(re.search(r"it took (\d+) s", said)[1]), 3 * PATIENCE)


class Words(unittest.TestCase):
    def test_the_file_is_the_one_that_is_loaded(self):
        self.assertTrue(os.path.samefile(library.file(), library.path()))

    def test_each_field_that_differs(self):
        setups = {rank: {"library build": "a", "architecture": "sm_90"} for rank in range(6)}
        self.assertEqual(agreement.compare(setups), [])
        setups[3] = {"library build": "b"}
        self.assertEqual(agreement.compare(setups), [
            "architecture is sm_90 in ranks 0-2, 4-5, not set in rank 3",
            "library build is a in ranks 0-2, 4-5, b in rank 3",
        ])  # fmt: skip

    def test_settings_are_named_one_by_one(self):
        flat = agreement.flat({"weight": {"recipe": "TE"}, "rules": [], "prefixes": {}})
        self.assertEqual(flat, {"weight.recipe": '"TE"', "rules": "[]", "prefixes": "{}"})
        self.assertEqual({key: json.loads(value) for key, value in flat.items()}["weight.recipe"], "TE")

    def test_where_a_file_lies_may_differ(self):
        with unittest.mock.patch.dict(os.environ, {"FP8RT_VERBOSE": "1", "FP8RT_CUTLASS_KERNEL": "x"}):
            environment = agreement.environment()
        self.assertNotIn("FP8RT_LIBRARY", environment)
        self.assertNotIn("FP8RT_VERBOSE", environment)
        self.assertEqual(environment["FP8RT_CUTLASS_KERNEL"], "x")
        self.assertIn("VLLM_BATCH_INVARIANT", environment)


if __name__ == "__main__":
    unittest.main()
