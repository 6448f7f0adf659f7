"""Scales of an FP8 KV cache: alive after loading, changed by refits where attention reads them, else refused."""

import itertools
import math
import types
import unittest
from unittest import mock

import attention_toy as toy
import torch
import world

from fp8rt_vllm import health, kv_cache, places, refit


def fresh(seed: int, scales: dict | None = None, **keys) -> torch.nn.Module:
    """A start on these weights, of which each layer knows when it is made."""
    from vllm.config import get_current_vllm_config

    with mock.patch.object(get_current_vllm_config().load_config, "load_format", "auto"):
        model = toy.make(world.config(), **keys)
    model.load_weights({**toy.values(seed), **(scales or {})}.items())
    return toy.processed(model)


def dummy(**keys) -> torch.nn.Module:
    """A start as an engine makes it that gets its weights later."""
    from vllm.model_executor.model_loader.weight_utils import initialize_single_dummy_weight

    model = toy.make(world.config(), **keys)
    for tensor in model.state_dict().values():
        initialize_single_dummy_weight(tensor)
    return toy.processed(model)


def refitted(model: torch.nn.Module, *buckets: dict) -> dict:
    for bucket in buckets:
        copies = [(name, weight.clone()) for name, weight in bucket.items()]
        refit.load_weights(copies, model)
        # The caller reuses its buffer.
        for _, copy in copies:
            copy.fill_(9)
    return refit.receipt(model)


class AfterLoading(unittest.TestCase):
    def test_what_attention_reads_is_what_stock_vllm_makes(self):
        from vllm.model_executor.layers.quantization.fp8 import Fp8KVCacheMethod

        with world.world():
            for kinds in ("", "k", "kv", "qkv", "q"):
                with self.subTest(kinds=kinds):
                    own = fresh(1, toy.scales(0.5, kinds))
                    with mock.patch("fp8rt_vllm.kv_cache.Fp8rtKVCacheMethod", Fp8KVCacheMethod):
                        stock = fresh(1, toy.scales(0.5, kinds))
                    self.assertEqual(toy.read(own), toy.read(stock))
                    self.assertFalse(hasattr(toy.attentions(stock)[0], "k_scale"))

    def test_parameters_stay_with_their_values(self):
        with world.world():
            first, second = toy.attentions(fresh(1, toy.scales(0.5, "kv")))
            self.assertEqual([first.k_scale.item(), first.v_scale.item()], [0.5, 0.625])
            self.assertEqual([second.k_scale.item(), second.v_scale.item()], [1.5, 1.625])
            self.assertEqual([first.q_scale.item(), first.prob_scale.item()], [kv_cache.ABSENT] * 2)
            self.assertIsInstance(first.k_scale, torch.nn.Parameter)

    def test_not_rounded_to_the_type_of_the_model(self):
        """vLLM builds and processes a model with this as torch's default."""
        scales = toy.scales(0.1)
        with world.world():
            torch.set_default_dtype(torch.bfloat16)
            try:
                model = fresh(1, scales)
            finally:
                torch.set_default_dtype(torch.float32)
            expected = torch.tensor(0.1 + 1 / 8).item()
            self.assertEqual(toy.read(model)[0]["_k_scale"], expected)
            self.assertEqual(toy.read(model)[0]["_k_scale_float"], expected)

    def test_random_weights_leave_no_scale(self):
        with world.world("dummy"):
            for dtype in ("fp8", "auto"):
                for layer in toy.read(dummy(dtype=dtype)):
                    self.assertEqual(set(layer.values()) - {None}, {1.0})

    def test_auto_is_stock(self):
        with world.world():
            model = fresh(1, toy.scales(0.5), dtype="auto")
            for attention in toy.attentions(model):
                self.assertFalse(hasattr(attention, "k_scale"))
                self.assertEqual(attention._k_scale.item(), 1)
            for seed in (2, 3):
                # vLLM drops them, as it does without this plugin; they begin no refit of their own.
                refitted(model, toy.values(seed), toy.scales(2))
                self.assertEqual(toy.attentions(model)[0]._k_scale.item(), 1)

    def test_bad_scales_of_a_checkpoint(self):
        with world.world():
            for value in (0.0, -2.0, math.inf, math.nan):
                scales = toy.scales(0.5)
                scales["model.layers.1.self_attn.k_scale"].fill_(value)
                with self.assertRaisesRegex(ValueError, r"layers.1.self_attn.attn.k_scale is .*positive and finite"):
                    fresh(1, scales)
            with self.assertRaisesRegex(ValueError, "v_scale is 0.5, and there is no k_scale"):
                fresh(1, toy.scales(0.5, "v"))


class Refits(unittest.TestCase):
    def test_changed_at_the_second_refit_at_the_same_address(self):
        with world.world("dummy"):
            model = dummy()
            before = toy.addresses(model)
            first, second = toy.scales(0.5), toy.scales(3)
            refitted(model, toy.values(1), first)
            self.assertEqual(toy.read(model), toy.read(fresh(1, first)))
            refitted(model, toy.values(2), second)
            self.assertEqual(toy.read(model), toy.read(fresh(2, second)))
            self.assertNotEqual(toy.read(model), toy.read(fresh(2, first)))
            self.assertEqual(toy.addresses(model), before)
            # NeMo-RL has vLLM process everything once more.
            expected = toy.read(model)
            toy.processed(model)
            self.assertEqual(toy.read(model), expected)
            self.assertEqual(toy.attentions(model)[0].k_scale.item(), 3.125)

    def test_in_any_place_among_the_buckets(self):
        with world.world("dummy"):
            model = dummy()
            for turn, place in enumerate(itertools.product((0, 1, 2, 3), (False, True))):
                weights, scales = toy.values(turn), toy.scales(turn + 1.5)
                names = list(weights)
                buckets = [{name: weights[name]} for name in names]
                order = list(reversed(scales)) if place[1] else list(scales)
                # Cut between scales of one layer too.
                halves = [{name: scales[name] for name in part} for part in (order[:2], order[2:])]
                buckets[place[0] : place[0]] = halves
                receipt = refitted(model, *buckets)
                self.assertEqual(receipt["items"], len(names))
                self.assertEqual(toy.read(model), toy.read(fresh(turn, scales)), place)

    def test_takes_effect_without_a_receipt(self):
        with world.world("dummy"):
            model = dummy()
            for turn in range(3):
                scales = toy.scales(turn + 0.5)
                refit.load_weights({**scales, **toy.values(turn)}.items(), model)
                self.assertEqual(toy.read(model), toy.read(fresh(turn, scales)))

    def test_one_copy_to_the_host_a_refit(self):
        with world.world("dummy"):
            model = dummy()
            refitted(model, toy.values(1), toy.scales(0.5))
            layers = [{name: weight} for name, weight in toy.scales(2).items()]
            weights = [{name: weight} for name, weight in toy.values(2).items()]
            with mock.patch.object(kv_cache, "on_host", wraps=kv_cache.on_host) as copies:
                refitted(model, weights[0], *layers, *weights[1:])
            self.assertEqual(copies.call_count, 1)
            self.assertEqual(toy.read(model), toy.read(fresh(2, toy.scales(2))))

    def test_some_missing_is_an_error_and_all_missing_is_none(self):
        with world.world("dummy"):
            model = dummy()
            refitted(model, toy.values(1), toy.scales(0.5))
            expected = toy.read(model)
            refitted(model, toy.values(2))
            self.assertEqual(toy.read(model), expected)
            scales = toy.scales(2)
            gone = scales.popitem()
            with self.assertRaisesRegex(RuntimeError, f"{gone[0]} did not arrive, and 5 other scales"):
                refitted(model, toy.values(3), scales)
            refitted(model, dict([gone]))
            self.assertEqual(toy.read(model), toy.read(fresh(3, toy.scales(2))))

    def test_first_sent_at_a_later_refit(self):
        with world.world("dummy"):
            model = dummy()
            refitted(model, toy.values(1))
            refitted(model, toy.values(2), toy.scales(2))
            self.assertEqual(toy.read(model), toy.read(fresh(2, toy.scales(2))))

    def test_a_bad_value_changes_nothing(self):
        with world.world("dummy"):
            model = dummy()
            refitted(model, toy.values(1), toy.scales(0.5))
            expected = toy.read(model)
            name = "model.layers.1.self_attn.v_scale"
            for value in (0.0, -1.0, math.inf, math.nan):
                scales = toy.scales(2)
                scales[name] = torch.tensor([value])
                for buckets in ((toy.values(2), scales), (scales, toy.values(2)), ({**toy.values(2), **scales},)):
                    with self.assertRaisesRegex(ValueError, f"{name} is {value}, must be positive and finite"):
                        refitted(model, *buckets)
                    self.assertEqual(toy.read(model), expected)
                    refit.begin(model)
            # The weights are new and the scales old: that is a refit that failed, until another one is whole.
            with self.assertRaisesRegex(health.MixedModelError, f"{name} is nan"):
                refit.receipt(model)
            refitted(model, toy.values(2), toy.scales(2))
            self.assertEqual(toy.read(model), toy.read(fresh(2, toy.scales(2))))
            # Alone they are refused before anything changes.
            with self.assertRaisesRegex(ValueError, name):
                refitted(model, scales)
            refit.check(model)
            self.assertEqual(toy.read(model), toy.read(fresh(2, toy.scales(2))))

    def test_v_without_k(self):
        with world.world("dummy"):
            model = dummy()
            with self.assertRaisesRegex(RuntimeError, "v_scale arrived without a k_scale"):
                refitted(model, toy.values(1), toy.scales(2, "v"))
            self.assertEqual(toy.attentions(model)[0]._v_scale.item(), 1)
            refitted(model, toy.scales(2, "k"))
            self.assertEqual(toy.attentions(model)[0]._k_scale.item(), 2)
            self.assertEqual(toy.attentions(model)[0]._v_scale.item(), 2)

    def test_backends_that_keep_what_they_read_once(self):
        with world.world("dummy"):
            model = dummy(kind="FLASHINFER")
            ones = {name: torch.ones(1) for name in toy.scales(1)}
            for seed in (1, 2):
                refitted(model, toy.values(seed), ones)
            expected = toy.read(model)
            changed = {**ones, "model.layers.1.self_attn.v_scale": torch.tensor([2.0])}
            with self.assertRaisesRegex(
                NotImplementedError, "model.layers.1.self_attn.attn: v_scale changes from 1.0 to 2.0, and FLASHINFER"
            ):
                refitted(model, toy.values(3), changed)
            self.assertEqual(toy.read(model), expected)
            for kind in ("FLASH_ATTN", "CPU_ATTN"):
                refitted(dummy(kind=kind), toy.values(1), toy.scales(2))

    def test_calculated_scales_and_loaded_ones(self):
        with world.world("dummy"):
            model = dummy(calculate=True)
            if not hasattr(toy.attentions(model)[0], "calculate_kv_scales"):
                # vLLM 0.33.0 never calculates: they are loaded, whatever a configuration still says.
                refitted(model, toy.values(1), toy.scales(2))
                self.assertEqual(toy.read(model), toy.read(fresh(1, toy.scales(2))))
                return
            toy.attentions(model)[0]._k_scale.fill_(0.25)
            refitted(model, toy.values(1))
            # As stock: what the first prompt gave is not overwritten.
            toy.processed(model)
            self.assertEqual(toy.attentions(model)[0]._k_scale.item(), 0.25)
            with self.assertRaisesRegex(ValueError, "k_scale arrived, and calculate_kv_scales is true"):
                refitted(model, toy.scales(2, "k"))


class Reload(unittest.TestCase):
    def reload(self, model, weights: dict) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        initialize_layerwise_reload(model)
        model.load_weights(weights.items())
        finalize_layerwise_reload(model, types.SimpleNamespace(dtype=torch.bfloat16))

    def test_reload_and_refit_in_turns(self):
        with world.world():
            model = fresh(1, toy.scales(0.5))
            before = toy.addresses(model)
            for turn in (2, 4):
                scales = toy.scales(turn)
                self.reload(model, {**toy.values(turn), **scales})
                self.assertEqual(toy.read(model), toy.read(fresh(turn, scales)))
                # Without any, they stay.
                self.reload(model, toy.values(turn))
                self.assertEqual(toy.read(model), toy.read(fresh(turn, scales)))
                scales = toy.scales(turn + 1)
                refitted(model, toy.values(turn), scales)
                self.assertEqual(toy.read(model), toy.read(fresh(turn, scales)))
                self.assertEqual(toy.addresses(model), before)


def fingerprints(model):
    return refit.fingerprint(model) | refit.cache_fingerprint(model)


class Fingerprints(unittest.TestCase):
    def test_other_scales_do_not_look_equal(self):
        with world.world("dummy"):
            models = [dummy() for _ in range(3)]
            for model, first in zip(models, (0.5, 0.5, 0.75), strict=True):
                refitted(model, toy.values(1), toy.scales(first))
            one, same, other = (fingerprints(model) for model in models)
            self.assertEqual(one, same)
            self.assertLessEqual(set(toy.scales(1)), set(one))
            differ = {name for name in one if one[name] != other[name]}
            self.assertEqual(differ, set(toy.scales(1)))

    def test_before_any_refit_and_as_the_trainer_has_them(self):
        from fp8rt.plan import Destination, RefitPlan

        with world.world():
            loaded, other = fresh(1, toy.scales(0.5)), fresh(1, toy.scales(0.75))
            differ = {k for k, v in fingerprints(loaded).items() if fingerprints(other)[k] != v}
            self.assertEqual(len(differ), len(toy.scales(1)))
        with world.world("dummy"):
            model = dummy()
            refitted(model, toy.values(1), toy.scales(0.5))
            name, value = next(iter(toy.scales(0.5).items()))
            trainer = RefitPlan(torch.device("cpu"), [Destination(name, value)], []).fingerprints()
            self.assertEqual(refit.cache_fingerprint(model)[name], trainer[name])
            self.assertNotIn(name, refit.fingerprint(model))
            self.assertIn(name, places.places(model)["not_told"])


if __name__ == "__main__":
    unittest.main()
