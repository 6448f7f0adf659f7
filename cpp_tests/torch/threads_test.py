"""Many threads at once: the first call on a context, plans that grow, refits beside runs."""
import threading
import unittest

import support
from support import load, same, torch

OPS = load()
THREADS = 8


def together(work):
    """Runs work(index) in threads that start at once, and gives what they returned."""
    barrier, results, failures = threading.Barrier(THREADS), [None] * THREADS, []

    def run(index):
        barrier.wait()
        try:
            results[index] = work(index)
        except Exception as failure:  # shown by the test
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


class Threads(unittest.TestCase):
    def test_1_the_first_calls_of_the_process(self):
        weight = torch.randn(256, 256)

        def first(_):
            out = support.empty_weight(256, 256)
            OPS.quantize_weight(weight, *out)
            return out

        results = together(first)
        self.assertTrue(all(same(a, b) for result in results for a, b in zip(result, results[0])))

    def test_plans_are_made_and_grow_while_they_run(self):
        shapes = [(128 * n, 128 * k) for n in (1, 2, 3) for k in (1, 2)]
        weights = [support.quantized_weight(n, k, seed=n + k)[1:] for n, k in shapes]
        rows = [1, 3, 9, 17, 40, 70]
        xs = {k: torch.randn(max(rows), k).bfloat16() for _, k in shapes}

        def work(index):
            results = []
            for turn in range(3 * len(rows)):
                m = rows[(turn + index) % len(rows)]
                for weight, (n, k) in zip(weights, shapes):
                    results.append(((m, n, k), OPS.linear(xs[k][:m], *weight)))
            return results

        expected = {}
        for results in together(work):
            for key, y in results:
                self.assertTrue(same(y, expected.setdefault(key, y)), key)
        self.assertEqual(len(expected), len(rows) * len(shapes))
        # And the same bits as alone.
        for weight, (n, k) in zip(weights, shapes):
            self.assertTrue(same(OPS.linear(xs[k][:9], *weight), expected[9, n, k]))

    def test_errors_are_of_their_own_thread(self):
        _, codes, scales = support.quantized_weight(128, 128)

        def work(index):
            for _ in range(200):
                try:
                    OPS.linear(torch.zeros(2, 100 + index).bfloat16(), codes, scales)
                except RuntimeError as error:
                    if f"x has {100 + index} columns" not in str(error):
                        return str(error)
                else:
                    return "not refused"
            return None

        self.assertEqual(together(work), [None] * THREADS)


if __name__ == "__main__":
    torch.manual_seed(0)
    unittest.main()
