"""What a running engine is asked: the mixin fits vLLM's worker, and the answers of its ranks are put together."""

import inspect
import unittest

from vllm.v1.worker.worker_base import WorkerBase

import fp8rt_vllm
from fp8rt.comparison import added, holds
from fp8rt_vllm.worker import WorkerExtension

ONE = f"{1:032x}"
TWO = f"{2:032x}"
ALL_BITS = "f" * 32


class Engine:
    """Answers as LLM.collective_rpc does: a list of what each rank says."""

    def __init__(self, answers):
        self.answers = answers

    def collective_rpc(self, method):
        return self.answers[method]


def rank(weights, policy="p"):
    return {"policy": policy, "setup": {"vLLM version": "x"}, "weights": weights}


class Mixin(unittest.TestCase):
    def test_its_names_are_its_own(self):
        names = [name for name in dir(WorkerExtension) if not name.startswith("__")]
        self.assertTrue(all(name.startswith("fp8rt_") for name in names), names)
        # vLLM refuses an extension that has a name of its worker.
        self.assertEqual([name for name in names if hasattr(WorkerBase, name)], [])

    def test_what_it_calls_is_there(self):
        from fp8rt_vllm import refit

        for name in ("load_weights", "begin", "check", "receipt", "fingerprint"):
            self.assertEqual(list(inspect.signature(getattr(refit, name)).parameters)[-1], "model_runner")


class Together(unittest.TestCase):
    def test_fingerprints_of_all_ranks(self):
        engine = Engine({"fp8rt_fingerprint": [rank({"a": ONE, "b": TWO}), rank({"a": TWO})]})
        found = fp8rt_vllm.fingerprint(engine)
        self.assertEqual(found["weights"], {"a": [ONE, TWO], "b": [TWO]})
        self.assertEqual(found["policy"], "p")
        self.assertEqual(found["total"], f"{5:032x}")

    def test_ranks_of_other_policies(self):
        engine = Engine({"fp8rt_fingerprint": [rank({}, "p"), rank({}, "q")]})
        with self.assertRaisesRegex(RuntimeError, "p, q"):
            fp8rt_vllm.fingerprint(engine)

    def test_nobody_answers(self):
        with self.assertRaisesRegex(RuntimeError, "fp8rt_receipt"):
            fp8rt_vllm.receipts(Engine({"fp8rt_receipt": []}))

    def test_mixed_in_some_ranks(self):
        fp8rt_vllm.check(Engine({"fp8rt_check": ["", ""]}))
        with self.assertRaisesRegex(fp8rt_vllm.MixedModelError, "^rank 1: half$"):
            fp8rt_vllm.check(Engine({"fp8rt_check": ["", "half"]}))

    def test_shards_and_copies(self):
        self.assertTrue(holds([ONE, ONE], ONE))
        self.assertTrue(holds([ONE, ONE], TWO))
        self.assertFalse(holds([ONE, TWO], TWO))
        self.assertEqual(added([ALL_BITS, TWO]), ONE)


if __name__ == "__main__":
    unittest.main()
