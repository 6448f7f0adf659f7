"""Sleep, wake, refit, generate: what is refused, and what heals it. Nothing is unmapped here; asleep is what vLLM's
allocator says is asleep.
"""

import copy
import gc
import pickle
import types
import unittest
from unittest import mock

import torch
import toy
import world
from vllm.config import set_current_vllm_config
from vllm.device_allocator import AllocationData, cumem
from vllm.device_allocator.sleep_mode_backend import SleepModeBackendFactory
from vllm.model_executor.layers.logits_processor import LogitsProcessor

from fp8rt_vllm import MixedModelError, health, peers, refit, sleeping

NAME = "layers.1.mlp.down_proj.weight"
WEIGHTS = ("weights",)


class Allocator:
    """The entries of vLLM's allocator over the tensors of a model, and what sleep and wake do to the entries."""

    def __init__(self, model: torch.nn.Module):
        self.pointer_to_data = {
            tensor.data_ptr(): AllocationData((0, tensor.nbytes, tensor.data_ptr(), 0), "weights")
            for tensor in toy.tensors(model).values()
        }

    def sleep(self, offload_tags=()):
        for data in self.pointer_to_data.values():
            data.is_asleep = True
            data.cpu_backup_tensor = torch.zeros(1) if data.tag in offload_tags else None

    def discard(self, tags):
        for data in self.pointer_to_data.values():
            data.is_asleep = data.is_asleep or data.tag in tags

    def wake_up(self, tags=None):
        for data in self.pointer_to_data.values():
            if tags is None or data.tag in tags:
                data.is_asleep, data.cpu_backup_tensor = False, None


class CycleTest(unittest.TestCase):
    def setUp(self):
        for entered in (world.world("dummy"), mock.patch.object(cumem.CuMemAllocator, "instance", None)):
            entered.__enter__()
            self.addCleanup(entered.__exit__, None, None, None)
        self.config = world.config()
        self.model = toy.processed(toy.make(self.config))
        self.guard = self.logits_processor(self.config)

    def logits_processor(self, config) -> LogitsProcessor:
        """As a model makes it."""
        from vllm.config import get_current_vllm_config

        settings = copy.copy(get_current_vllm_config())
        settings.quant_config = config
        settings.model_config = types.SimpleNamespace(dtype=torch.bfloat16, head_dtype=torch.bfloat16)
        with set_current_vllm_config(settings, check_compile=False):
            return LogitsProcessor(toy.VOCABULARY, logits_as_input=True)

    def generate(self) -> None:
        """What vLLM calls in every step, after the model or the replay of its graph."""
        self.guard(None, torch.zeros(1, toy.VOCABULARY))

    def refuses(self, pattern: str) -> None:
        for _ in range(2):
            with self.assertRaisesRegex(MixedModelError, pattern):
                self.generate()
        with self.assertRaisesRegex(MixedModelError, pattern):
            refit.check(self.model)

    def refit(self, seed: int) -> None:
        for bucket in buckets(toy.values(seed)):
            refit.load_weights(bucket, self.model)

    def holds(self, seed: int) -> None:
        """Generation is allowed, and every byte is that of a fresh start."""
        self.generate()
        other = toy.make(world.config())
        other.load_weights(toy.values(seed).items())
        self.assertEqual(toy.same(toy.state(self.model), toy.state(toy.processed(other))), [])

    def allocator(self) -> Allocator:
        found = cumem.CuMemAllocator.instance = Allocator(self.model)
        patched = mock.patch("vllm.device_allocator.get_mem_allocator_instance", return_value=found)
        patched.start()
        self.addCleanup(patched.stop)
        return found

    def backend(self):
        """As vLLM's worker makes it at its first sleep."""
        settings = types.SimpleNamespace(sleep_mode_backend="cumem")
        sleeping.choose(settings)
        return SleepModeBackendFactory.create_backend(settings)


def buckets(weights: dict, size: int = 5):
    names = list(weights)
    for begin in range(0, len(names), size):
        yield [(name, weights[name]) for name in names[begin : begin + size]]


class FailureTest(CycleTest):
    def test_before_any_refit(self):
        self.generate()
        self.assertTrue(self.config.health.settled)

    def test_a_first_refit_is_over_when_all_arrived(self):
        first, *others = buckets(toy.values(1))
        refit.load_weights(first, self.model)
        self.refuses(r"amid a refit \(begin\(\) gives it up\): .*layers.0.self_attn.qkv_proj.bias")
        for bucket in others:
            refit.load_weights(bucket, self.model)
        self.holds(1)
        self.assertTrue(self.config.health.settled)
        self.assertEqual(refit.receipt(self.model)["items"], len(toy.shapes()))

    def test_amid_a_later_refit(self):
        self.refit(1)
        self.holds(1)
        *some, last = buckets(toy.values(2))
        for bucket in some:
            refit.load_weights(bucket, self.model)
        self.refuses("amid a refit .*INCOMPLETE")
        refit.load_weights(last, self.model)
        self.holds(2)

    def test_a_bucket_that_fails_half_way(self):
        for turn in range(2):
            self.refit(1)
            self.holds(1)
            some = list(buckets(toy.values(2)))
            refit.load_weights(some[0], self.model)
            with self.assertRaisesRegex(ValueError, "has shape"):
                refit.load_weights([(NAME, torch.zeros(3, 3))], self.model)
            self.refuses("filled again: layers.0.self_attn.qkv_proj: a bucket failed: ValueError: .*has shape")
            with self.assertRaisesRegex(MixedModelError, "has shape"):
                refit.receipt(self.model)
            if turn:
                # What was missing is not enough: it is the beginning of a new refit.
                for bucket in some[1:]:
                    refit.load_weights(bucket, self.model)
                self.refuses("amid a refit")
                refit.begin(self.model)
                self.refuses("filled again: .*: a refit was given up")
            self.refit(2)
            self.holds(2)

    def test_a_first_refit_that_fails_half_way(self):
        first, *_ = buckets(toy.values(1))
        refit.load_weights(first, self.model)

        def broken():
            yield from first[:1]
            raise ConnectionError("the trainer is gone")

        with self.assertRaises(ConnectionError):
            refit.load_weights(broken(), self.model)
        self.refuses("ConnectionError: the trainer is gone")
        self.refit(2)
        self.holds(2)

    def test_a_run_of_the_library_that_fails(self):
        """In the state FAILED something was enqueued, also in the first bucket; otherwise nothing was."""
        self.refit(1)
        self.holds(1)
        plan = refit.of(self.model).plan
        for state, mixed in ((1, False), (2, True)):
            with (
                mock.patch.object(plan, "run", side_effect=RuntimeError("CUDA")),
                mock.patch.object(plan, "query", return_value=types.SimpleNamespace(state=state)),
                self.assertRaisesRegex(RuntimeError, "CUDA"),
            ):
                self.refit(2)
            if mixed:
                self.refuses("CUDA")
            else:
                self.holds(1)
        self.refit(2)
        self.holds(2)

    def test_nothing_written_nothing_lost(self):
        self.refit(1)
        self.holds(1)
        for bad in ([(NAME, torch.zeros(3, 3))], [("layers.0.nobody.weight", torch.zeros(2, 2))]):
            with self.assertRaises((ValueError, KeyError)):
                refit.load_weights(bad, self.model)
            self.holds(1)
        self.refit(2)
        self.holds(2)

    def test_an_empty_bucket_is_no_refit(self):
        self.refit(1)
        refit.load_weights([], self.model)
        self.holds(1)

    def test_scales_of_a_refit_that_failed_are_not_kept(self):
        self.refit(1)
        self.holds(1)
        receipt = refit.receipt(self.model)
        layer = self.model.layers[1].mlp.down_proj
        codes = layer.weight.detach().clone()
        refit.load_weights([(f"{NAME}_scale_inv", layer.weight_scale_inv + 1)], self.model)
        with self.assertRaises(ValueError):
            refit.load_weights([("norm.weight", torch.zeros(3))], self.model)
        # Nothing was written, and the last refit is what it was.
        self.assertEqual(refit.receipt(self.model), receipt)
        refit.load_weights([(NAME, codes)], self.model)
        self.refuses(f"{NAME} did not arrive whole")
        self.refit(2)
        self.holds(2)

    def test_a_loader_that_computes_and_fails(self):
        calls = []

        def loader(parameter, weight):
            calls.append(weight)
            if not weight.is_meta and len(weight[weight > 0]) == 0:
                raise RuntimeError("no positive weight")
            parameter.data.copy_(-weight)

        self.model.norm.weight.weight_loader = loader
        self.refit(1)
        self.generate()
        with self.assertRaisesRegex(RuntimeError, "no positive"):
            refit.load_weights([("norm.weight", torch.full((toy.HIDDEN,), -1.0, dtype=torch.bfloat16))], self.model)
        self.refuses("no positive weight")
        self.refit(2)
        self.generate()

    def test_a_name_that_no_refit_had(self):
        """It is learned by the refit after."""
        self.refit(1)
        self.holds(1)
        first, *others = buckets(toy.values(2))
        extra = ("layers.0.rotary.inv_freq", torch.ones(3))
        refit.load_weights(first, self.model)
        with self.assertRaisesRegex(RuntimeError, "inv_freq came amid"):
            refit.load_weights([*others[0], extra], self.model)
        self.refuses("inv_freq came amid")
        for bucket in (first, [*others[0], extra], *others[1:]):
            refit.load_weights(bucket, self.model)
        self.holds(2)

    def test_vllms_own_loaders_heal_and_break(self):
        self.refit(1)
        refit.load_weights(list(toy.values(2).items())[:9], self.model)
        with self.assertRaises(ValueError):
            refit.load_weights([(NAME, torch.zeros(3, 3))], self.model)
        weights = toy.values(3)
        up = weights.pop("layers.0.mlp.up_proj.weight")
        self.model.load_weights(weights.items())
        self.refuses("layers.0.mlp.gate_up_proj: of 196608 elements 98304 arrived")
        self.model.load_weights([("layers.0.mlp.up_proj.weight", up)])
        self.holds(3)
        self.model.load_weights([("layers.0.mlp.up_proj.weight", up)])
        self.refuses("layers.0.mlp.gate_up_proj: of 196608 elements 98304 arrived")
        self.refit(4)
        self.holds(4)


class RanksTest(CycleTest):
    """Another rank, as its words in the store of the world's group."""

    def setUp(self):
        super().setUp()
        self.store = torch.distributed.HashStore()
        for name, value in (("world_store", self.store),):
            patched = mock.patch.object(peers, name, return_value=value)
            patched.start()
            self.addCleanup(patched.stop)
        patched = mock.patch("torch.distributed.get_rank", return_value=5)
        patched.start()
        self.addCleanup(patched.stop)
        self.other = peers.Peers(type(self.model).__qualname__)

    def test_another_rank_failed(self):
        self.refit(1)
        self.holds(1)
        *some, last = buckets(toy.values(2))
        for bucket in some:
            refit.load_weights(bucket, self.model)
        self.other.tell(2, "a bucket failed: no memory")
        # The first bucket of the next refit.
        refit.load_weights(some[0], self.model)
        self.refuses("amid a refit")
        for bucket in (*some[1:], last):
            refit.load_weights(bucket, self.model)
        self.holds(2)

    def test_another_rank_failed_in_the_last_bucket(self):
        self.refit(1)
        self.holds(1)
        self.refit(2)
        self.other.tell(2, "a bucket failed: no memory")
        self.refuses("rank 5: a bucket failed: no memory")
        self.refit(2)
        self.holds(2)
        self.other.tell(3, "again")
        self.generate()  # Asked only after something was loaded here.

    def test_this_rank_tells(self):
        self.refit(1)
        self.holds(1)
        self.assertIsNone(self.other.news())
        # Nothing was written here; of the others nobody knows.
        with self.assertRaises(ValueError):
            refit.load_weights([(NAME, torch.zeros(3, 3))], self.model)
        self.refuses("has shape")
        number, reason = self.other.news()
        self.assertEqual(number, 2)
        self.assertRegex(reason, "rank 5: a bucket failed: ValueError: .*has shape")
        self.refit(1)
        self.holds(1)
        self.assertIsNone(self.other.news())

    def test_another_rank_failed_before_this_one_began(self):
        """Ranks run at their own pace: the news of a refit may come before the refit."""
        self.refit(1)
        self.holds(1)
        self.other.tell(2, "a bucket failed: no memory")
        self.refit(2)
        self.refuses("rank 5: a bucket failed: no memory")
        with self.assertRaisesRegex(MixedModelError, "rank 5: a bucket failed: no memory"):
            refit.receipt(self.model)
        self.refit(2)
        self.holds(2)

    def test_the_rest_of_what_failed_elsewhere(self):
        """Where no caller stops the other ranks, they get all of it, and the next refit begins in its place."""
        self.refit(1)
        self.holds(1)
        first, *rest = buckets(toy.values(2))
        refit.load_weights(first, self.model)
        self.other.tell(2, "a bucket failed: no memory")
        for bucket in rest:
            refit.load_weights(bucket, self.model)
        self.refuses("rank 5: a bucket failed: no memory")
        self.refit(3)
        self.holds(3)

    def test_the_newest_of_several_failures(self):
        self.refit(1)
        self.refit(2)
        self.other.tell(2, "late")
        self.other.tell(1, "early")
        self.assertEqual(peers.Peers(type(self.model).__qualname__).news(), (2, "rank 5: late"))


class SleepTest(CycleTest):
    def test_asleep(self):
        self.refit(1)
        self.holds(1)
        prints = refit.fingerprint(self.model)
        allocator = self.allocator()
        refit.fingerprint(self.model)
        allocator.sleep(WEIGHTS)
        for call in (
            lambda: self.refit(2),
            lambda: refit.fingerprint(self.model),
            lambda: self.model.load_weights([(NAME, toy.values(2)[NAME])]),
        ):
            with self.assertRaisesRegex(RuntimeError, r'while .* is asleep: wake_up\(\["weights"\]\)'):
                call()
        allocator.wake_up(["kv_cache"])
        with self.assertRaisesRegex(RuntimeError, "asleep"):
            refit.fingerprint(self.model)
        allocator.wake_up(["weights"])
        self.assertEqual(refit.fingerprint(self.model), prints)
        self.holds(1)
        self.refit(2)
        self.holds(2)

    def test_scales_alone(self):
        """They are no parameter, and lie in the same memory."""
        allocator = self.allocator()
        scales = self.model.layers[1].mlp.down_proj.weight_scale_inv
        allocator.pointer_to_data[scales.data_ptr()].is_asleep = True
        with self.assertRaisesRegex(RuntimeError, "a refit while layers.1.mlp.down_proj.weight is asleep"):
            self.refit(1)
        with self.assertRaisesRegex(RuntimeError, "layers.1.mlp.down_proj is asleep"):
            self.model.load_weights([(NAME, toy.values(2)[NAME])])

    def test_within_an_allocation(self):
        """Many tensors lie in one; the byte after its end is another's."""
        first, second = torch.zeros(8), torch.zeros(8)
        both = torch.zeros(16)
        allocator = self.allocator()
        allocator.pointer_to_data = {
            both.data_ptr(): AllocationData((0, 32, both.data_ptr(), 0), "weights", is_asleep=True),
            first.data_ptr(): AllocationData((0, 32, first.data_ptr(), 0), "weights"),
        }
        named = [("second", second), ("first", first), ("end", both[8:]), ("middle", both[7:])]
        self.assertEqual(sleeping.first(named), "middle")
        self.assertIsNone(sleeping.first(named[:3]))

    def test_cycles(self):
        """As vLLM's worker does: level 1 keeps the weights, level 2 does not."""
        backend, addresses = self.backend_over(self.allocator()), toy.addresses(self.model)
        self.refit(1)
        for turn in range(6):
            level = 1 + turn % 2
            self.holds(turn + 1)
            backend.suspend(level)
            backend.resume(["weights"])
            if level == 2:
                self.scramble()
                self.refuses("sleep discarded the weights")
                with self.assertRaisesRegex(MixedModelError, "discarded"):
                    refit.receipt(self.model)
            else:
                self.holds(turn + 1)
            self.refit(turn + 2)
            backend.resume(["kv_cache"])
            self.assertEqual(toy.addresses(self.model), addresses)

    def test_level_2_before_any_refit(self):
        backend = self.backend_over(self.allocator())
        backend.suspend(2)
        backend.resume(None)
        self.refuses("sleep discarded the weights")
        # What vLLM's users do then.
        self.model.load_weights(toy.values(1).items())
        toy.processed(self.model)
        self.holds(1)

    def test_level_2_amid_a_refit(self):
        backend = self.backend_over(self.allocator())
        self.refit(1)
        self.holds(1)
        *some, last = buckets(toy.values(2))
        for bucket in some:
            refit.load_weights(bucket, self.model)
        backend.suspend(2)
        backend.resume(None)
        refit.load_weights(last, self.model)
        self.refuses("amid a refit")

    def test_another_model_is_not_touched(self):
        backend = self.backend_over(self.allocator())
        other = world.config()
        toy.processed(toy.make(other))
        backend.suspend(2)
        backend.resume(None)
        other.health.check()
        with self.assertRaises(MixedModelError):
            self.config.health.check()

    def test_discard_of_newer_vllms(self):
        backend, allocator = self.backend_over(self.allocator()), cumem.CuMemAllocator.instance
        if not hasattr(sleeping.CuMemBackend, "discard"):
            with self.assertRaises(AttributeError):
                backend.discard(("kv_cache",))
            return
        backend.discard(("kv_cache",))
        self.generate()
        backend.discard(WEIGHTS)
        allocator.wake_up()
        self.refuses("discarded")

    def test_the_backend_is_chosen_by_the_first_layer(self):
        from vllm.config import get_current_vllm_config

        settings = get_current_vllm_config()
        settings.model_config = types.SimpleNamespace(sleep_mode_backend="cumem", dtype=torch.bfloat16)
        toy.make(world.config())
        self.assertEqual(settings.model_config.sleep_mode_backend, "fp8rt_cumem")

    def test_backends_that_are_not_known(self):
        asleep = {"enable_sleep_mode": True}
        for settings, said in (
            ({"sleep_mode_backend": "criu", **asleep}, "sleep_mode_backend is 'criu'"),
            (
                {"sleep_mode_backend": "cumem", "sleep_mode_offload_cudagraph": True, **asleep},
                "sleep_mode_offload_cudagraph is True",
            ),
        ):
            with self.assertRaisesRegex(NotImplementedError, said):
                sleeping.choose(types.SimpleNamespace(**settings))
            sleeping.choose(types.SimpleNamespace(**settings | {"enable_sleep_mode": False}))

    def backend_over(self, allocator):
        self.assertIs(cumem.CuMemAllocator.instance, allocator)
        made = self.backend()
        self.assertIs(type(made), sleeping.NoticingBackend)
        return made

    def scramble(self) -> None:
        """What a wake after level 2 leaves."""
        for tensor in toy.tensors(self.model).values():
            tensor.detach().view(-1).view(torch.uint8).fill_(0x55)


class HealthTest(CycleTest):
    def test_copies_share_it_and_processes_do_not(self):
        self.assertIs(copy.deepcopy(self.config).health, self.config.health)
        other = pickle.loads(pickle.dumps(self.config))
        self.assertIsNot(other.health, self.config.health)
        self.assertEqual(other.health.layers, [])

    def test_what_is_not_ours_is_not_asked(self):
        self.assertIsNone(self.logits_processor(None).health)
        self.config.health.discarded("x")
        self.logits_processor(None)(None, torch.zeros(1, toy.VOCABULARY))
        self.refuses("x")

    def test_models_are_not_kept(self):
        state = self.config.health
        self.assertEqual(len(state.layers), 8)
        self.assertIn(state, health.all_models())
        refit.load_weights(toy.values(1).items(), self.model)
        del self.model
        gc.collect()
        self.assertEqual((len(state.layers), len(state.refits)), (0, 0))


if __name__ == "__main__":
    unittest.main()
