"""A real vLLM engine of two ranks on the CPU, each a process, with the plugin; and ranks that are not set up alike."""

import contextlib
import os
import pathlib
import statistics
import sys
import tempfile
import unittest

import engines

FOLDER = tempfile.TemporaryDirectory()
ROOT = pathlib.Path(FOLDER.name)
engines.prepare_environment(ROOT)
# Each rank has a core. Nothing here is compiled, the sampler's own function neither.
os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}

from engines import ask, plugin, small_engine  # noqa: E402

import fp8rt_vllm  # noqa: E402

CONFIG = engines.SMALL
BUCKET_BYTES = 100_000
RANKS = 2
# See engine_test.py.
BOUND = 0.12


def setUpModule() -> None:
    engines.write_checkpoints(ROOT, CONFIG, 2)
    unittest.addModuleCleanup(FOLDER.cleanup)


@contextlib.contextmanager
def output_in(path: pathlib.Path):
    """What this process and those that it starts write, by file descriptor."""
    kept = [os.dup(number) for number in (1, 2)]
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in enumerate(kept, 1):
                os.dup2(old, number)
                os.close(old)


def generate(llm) -> dict:
    return engines.generate(llm, CONFIG["vocab_size"])


class RanksTest(unittest.TestCase):
    def test_a_rank_with_another_setting_is_refused(self):
        log = ROOT / "refused.log"
        with output_in(log), self.assertRaisesRegex(Exception, "WorkerProc initialization failed"):
            small_engine(ROOT / "bf16", tensor_parallel_size=RANKS, worker_cls="other_worker.OtherWorker", **plugin())
        said = "are not set up alike: environment FP8RT_CUTLASS_KERNEL is not set in rank 0, other in rank 1\n"
        self.assertIn(said, log.read_text())

    def test_two_ranks(self):
        llm = small_engine(ROOT / "bf16", tensor_parallel_size=RANKS, **plugin())
        self.addCleanup(llm.llm_engine.engine_core.shutdown)
        fresh, digests, addresses = generate(llm), ask(llm, "digests"), ask(llm, "addresses")
        self.assertEqual(len(digests), RANKS)
        with self.subTest("two refits"):
            for version in (1, 2):
                for receipt in ask(llm, "refit_in_buckets", version, BUCKET_BYTES):
                    self.assertEqual(receipt["items"], len(engines.shapes(CONFIG)))
                    self.assertEqual(receipt["blocks_filled"], receipt["blocks_total"])
                for now, then in zip(ask(llm, "digests"), digests, strict=True):
                    self.assertEqual(now == then, version == 2)
            self.assertEqual(generate(llm), fresh)
            self.assertEqual(ask(llm, "addresses"), addresses)
        with self.subTest("fingerprints and receipts"):
            found = fp8rt_vllm.fingerprint(llm)["weights"]
            self.assertEqual(set(found), set(engines.shapes(CONFIG)))
            for name, shards in engines.trainer_fingerprints(CONFIG, 2, RANKS).items():
                self.assertEqual(found[name], shards, name)
            self.assertEqual(len(fp8rt_vllm.receipts(llm)), RANKS)
        with self.subTest("reload"):
            ask(llm, "refit_in_buckets", 1, BUCKET_BYTES)
            ask(llm, "reload_weights")
            self.assertEqual(ask(llm, "digests"), digests)
            self.assertEqual(generate(llm), fresh)
            self.assertEqual(ask(llm, "addresses"), addresses)
        with self.subTest("beside bf16 on one rank"):
            exact = generate(small_engine(ROOT / "bf16"))["logprobs"]
            self.assertLess(engines.gap(fresh["logprobs"], exact), BOUND * statistics.stdev(exact))
        with self.subTest("a head of two ranks"):
            # The vocabulary of 300 is padded, and each rank holds a part of it.
            both = [found[f"{name}.weight"] for name in ("lm_head", "model.embed_tokens")]
            self.assertTrue(all(len(set(shards)) == RANKS for shards in both), both)


if __name__ == "__main__":
    unittest.main()
