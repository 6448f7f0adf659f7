"""The comparisons of gpu_vllm.py: each of them can fail, and what is not there does not pass."""

import copy
import unittest

import gpu_compare

PHASES = ["eager", "bf16", "graphs", "stock"]


def ours(fresh: bool) -> dict:
    made = {
        "methods": {"a": "Fp8rtLinearMethod"},
        "digests": [{"a": "2", "b": "3"}],
        "tokens": [[1, 2], [3, 4]],
        "logprobs": [-1.0, -2.1, -3.0],
    }
    if fresh:
        return made | {"reloaded": [{"a": "2", "b": "3"}]}
    addresses = {"addresses": [{"a": 16}], "addresses_after": [{"a": 16}]}
    return made | addresses | {"digests_1": [{"a": "1", "b": "3"}], "fingerprints": {"a": ["f"], "b": ["g"]}}


def results() -> dict:
    """Of a run in which all holds."""
    found = {"write": {"fingerprints": {"a": ["f"]}}}
    for mode in ("eager", "graphs"):
        found |= {mode: ours(False), f"{mode} fresh": ours(True)}
        found |= {f"bf16 {mode}": {"logprobs": [-1.0, -2.0, -3.0], "cold_s": 2.0, "decode_8_ms": 3.0}}
        found |= {f"stock {mode}": {"logprobs": [-1.0, -2.1, -3.0], "decode_8_ms": 5.0, "kernels": ["DeepGemmX"]}}
        found[mode] |= {"cold_s": 2.5, "decode_8_ms": 4.0}
    return found | {"eager serialized": {"digests": [{"a": "2", "b": "3"}], "tokens": [[1, 2], [3, 4]]}}


class CompareTest(unittest.TestCase):
    def failures(self, engine: str, **changes) -> list[str]:
        found = results()
        for key, value in changes.items():
            if value is None:
                del found[engine][key]
            else:
                found[engine][key] = value
        return gpu_compare.compare(found, PHASES, 2)

    def test_all_holds(self):
        self.assertEqual(gpu_compare.compare(results(), PHASES, 2), [])

    def test_each_comparison_fails(self):
        other = [{"a": "2", "b": "9"}]
        for engine, changes, said in (
            ("eager", {"digests": other}, "eager digests differ from eager fresh digests: b in rank 0 (1)"),
            ("graphs", {"tokens": [[1, 2], [3, 5]]}, "graphs tokens differ from graphs fresh tokens: item 1 (1)"),
            ("eager", {"addresses_after": [{"a": 32}]}, "eager addresses_after differ"),
            ("graphs fresh", {"reloaded": other}, "graphs fresh reloaded differ"),
            ("eager", {"digests_1": [{"a": "2", "b": "3"}]}, "eager: the first refit changed nothing"),
            ("graphs", {"fingerprints": {"a": ["x"]}}, "graphs: fingerprints differ from the trainer's: a (1)"),
            ("eager", {"methods": {"a": "UnquantizedLinearMethod"}}, "eager: linear methods are"),
            ("eager serialized", {"digests": other}, "eager serialized digests differ"),
            ("eager", {"logprobs": [-1.0, -3.0, -3.0]}, "eager: log-probabilities are 0.3333 from bf16's, bound"),
            ("stock eager", {"logprobs": [-1.0, -2.01, -3.0]}, "are 0.0333 from bf16's, vLLM's 0.0033"),
            ("stock eager", {"kernels": ["Cutlass"]}, "stock: its kernels are Cutlass"),
            ("graphs", {"error": "broken"}, "graphs: broken"),
        ):
            with self.subTest(engine, **changes):
                failures = self.failures(engine, **changes)
                self.assertTrue(any(said in failure for failure in failures), failures)

    def test_what_is_not_there_fails(self):
        for engine, key in (
            ("eager", "digests"),
            ("eager fresh", "tokens"),
            ("graphs", "addresses_after"),
            ("graphs fresh", "reloaded"),
            ("eager", "fingerprints"),
            ("write", "fingerprints"),
            ("eager serialized", "digests"),
            ("eager", "logprobs"),
            ("eager", "methods"),
        ):
            with self.subTest(engine=engine, key=key):
                self.assertNotEqual(self.failures(engine, **{key: None}), [])
        for engine in results():
            with self.subTest(engine=engine):
                found = results()
                del found[engine]
                self.assertNotEqual(gpu_compare.compare(found, PHASES, 2), [])
        self.assertNotEqual(gpu_compare.compare({}, PHASES, 2), [])

    def test_speed_and_table(self):
        found = copy.deepcopy(results())
        lines = gpu_compare.speed(found)
        self.assertIn("eager decode_8_ms: 1.250 times as fast as vLLM with DeepGEMM", lines)
        self.assertIn("generation, cold caches: 1.250 times bf16, at most 1.3 asked", lines)
        found["eager"] |= {"cold_s": 3.0, "decode_8_ms": 6.0}
        self.assertEqual(sum(line.endswith(": NOT MET") for line in gpu_compare.speed(found)), 2)
        self.assertEqual(len(gpu_compare.table(found)), len(found) + 1)


if __name__ == "__main__":
    unittest.main()
