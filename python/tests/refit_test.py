"""Refit: recording what the model's loader copies, replaying it, and saying what is missing."""

import itertools
import unittest

import torch
import toy
import world

from fp8rt_vllm import refit


def buckets(weights: dict, size: int):
    names = list(weights)
    for begin in range(0, len(names), size):
        yield [(name, weights[name]) for name in names[begin : begin + size]]


def fresh(seed: int, inner: int = toy.INNER) -> torch.nn.Module:
    model = toy.make(world.config(), inner)
    model.load_weights(toy.values(seed, inner).items())
    return toy.processed(model)


class RefitTest(unittest.TestCase):
    def test_refits_equal_a_fresh_start(self):
        for rank, ranks, inner in itertools.product((0, 1), (1, 2), (384, 200)):
            if rank < ranks:
                with self.subTest(rank=rank, ranks=ranks, inner=inner):
                    self.refits(rank, ranks, inner)

    def refits(self, rank, ranks, inner):
        with world.world("dummy", rank, ranks):
            model = toy.processed(toy.make(world.config(), inner))
            before = toy.addresses(model)
            for seed, size in ((1, 3), (2, 5), (3, 100)):
                for bucket in buckets(toy.values(seed, inner), size):
                    copies = [(name, weight.clone()) for name, weight in bucket]
                    refit.load_weights(copies, model)
                    # The caller reuses its buffer.
                    for _, copy in copies:
                        copy.fill_(9)
                receipt = refit.receipt(model)
                assert receipt["blocks_filled"] == receipt["blocks_total"] > 0
                assert receipt["items"] == len(toy.shapes())
                toy.processed(model)
                self.assertEqual(toy.same(toy.state(model), toy.state(fresh(seed, inner))), [])
                assert toy.addresses(model) == before

    def test_fingerprints_tell_equal_from_other_weights(self):
        with world.world("dummy"):
            models = [toy.processed(toy.make(world.config())) for _ in range(3)]
            for model, seed in zip(models, (1, 1, 2), strict=True):
                refit.load_weights(toy.values(seed).items(), model)
                refit.receipt(model)
            one, same, other = (refit.fingerprint(model) for model in models)
            assert set(one) == set(toy.shapes()) and one == same
            assert all(one[name] != other[name] for name in one)

    def test_names_the_tensor_that_is_missing(self):
        with world.world("dummy"):
            model = toy.processed(toy.make(world.config()))
            assert refit.receipt(model) is None
            weights = toy.values(1)
            gone = weights.pop("layers.1.self_attn.k_proj.weight")
            refit.load_weights(weights.items(), model)
            with self.assertRaisesRegex(RuntimeError, "layers.1.self_attn.qkv_proj.weight"):
                refit.receipt(model)
            refit.load_weights([("layers.1.self_attn.k_proj.weight", gone)], model)
            refit.receipt(model)
            refit.load_weights(weights.items(), model)
            with self.assertRaisesRegex(RuntimeError, "layers.1.self_attn.qkv_proj.weight"):
                refit.receipt(model)
            refit.begin(model)
            refit.load_weights(toy.values(1).items(), model)
            assert refit.receipt(model)["items"] == len(toy.shapes())

    def test_refuses_unknown_names_and_other_shapes(self):
        with world.world("dummy"):
            model = toy.processed(toy.make(world.config()))
            with self.assertRaisesRegex(KeyError, "nobody"):
                refit.load_weights([("layers.0.nobody.weight", torch.zeros(2, 2))], model)
            refit.load_weights(toy.values(1).items(), model)
            refit.receipt(model)
            with self.assertRaisesRegex(ValueError, "has shape"):
                refit.load_weights([("norm.weight", torch.zeros(7, dtype=torch.bfloat16))], model)

    def test_what_the_model_skips_is_no_error(self):
        with world.world("dummy"):
            model = toy.processed(toy.make(world.config()))
            for seed in (1, 2):
                refit.load_weights([*toy.values(seed).items(), ("layers.0.rotary.inv_freq", torch.ones(3))], model)
                refit.receipt(model)
                self.assertEqual(toy.same(toy.state(model), toy.state(fresh(seed))), [])

    def test_a_loader_that_computes_runs_every_time(self):
        with world.world("dummy"):
            model = toy.processed(toy.make(world.config()))

            def negative(parameter, weight):
                parameter.data.copy_(-weight)

            model.norm.weight.weight_loader = negative
            for seed in (1, 2):
                weights = toy.values(seed)
                refit.load_weights(weights.items(), model)
                refit.receipt(model)
                assert torch.equal(model.norm.weight, -weights["norm.weight"])

    def test_transforms_after_the_copy_are_kept(self):
        """vLLM's composed loaders copy and then compute in place: recorded alone the copy would be wrong."""
        from vllm.model_executor.model_loader.weight_utils import composed_weight_loader, default_weight_loader

        with world.world("dummy"):
            model = toy.processed(toy.make(world.config()))
            loader = composed_weight_loader(default_weight_loader, lambda weight: -2 * weight)
            model.norm.weight.weight_loader = loader
            for seed in (1, 2, 3):
                weights = toy.values(seed)
                refit.load_weights(weights.items(), model)
                refit.receipt(model)
                self.assertEqual(refit.of(model).record.direct, {"norm.weight"})
                self.assertTrue(torch.equal(model.norm.weight, -2 * weights["norm.weight"]))

    def test_a_loader_that_computes_fp8_weights(self):
        with world.world("dummy"):
            model, plain = (toy.processed(toy.make(world.config())) for _ in range(2))
            weight = model.layers[0].self_attn.qkv_proj.weight
            loader = weight.weight_loader
            weight.weight_loader = lambda param, loaded, shard: loader(param, loaded * 2, shard)
            for seed in (1, 2):
                weights = toy.values(seed)
                refit.load_weights(weights.items(), model)
                refit.receipt(model)
                for part in "qkv":
                    name = f"layers.0.self_attn.{part}_proj.weight"
                    weights[name] = weights[name] * 2
                refit.load_weights(weights.items(), plain)
                refit.receipt(plain)
                self.assertEqual(toy.same(toy.state(model), toy.state(plain)), [])

    def test_what_is_kept_must_arrive_too(self):
        with world.world("dummy"):
            model = toy.processed(toy.make(world.config()))
            weights = toy.values(1)
            norm = weights.pop("norm.weight")
            refit.load_weights(weights.items(), model)
            with self.assertRaisesRegex(RuntimeError, "nothing that arrived fills norm.weight"):
                refit.receipt(model)
            refit.load_weights([("norm.weight", norm)], model)
            refit.receipt(model)

    def test_trained_in_float32_casts_what_is_kept(self):
        with world.world("dummy"):
            model = toy.processed(toy.make(world.config()))
            for seed in (1, 2):
                weights = {name: weight.float() for name, weight in toy.values(seed).items()}
                refit.load_weights(weights.items(), model)
                refit.receipt(model)
                self.assertEqual(toy.same(toy.state(model), toy.state(fresh(seed))), [])

    def test_codes_and_scales_in_any_order(self):
        with world.world("dummy"):
            source, model = fresh(1), toy.processed(toy.make(world.config()))
            weights = toy.values(1)
            name = "layers.0.self_attn.o_proj.weight"
            layer = source.layers[0].self_attn.o_proj
            weights[name] = layer.weight.data
            for turn in range(2):
                pairs = [*weights.items(), (f"{name}_scale_inv", layer.weight_scale_inv)]
                for item in pairs if turn else reversed(pairs):
                    refit.load_weights([item], model)
                refit.receipt(model)
                self.assertEqual(toy.same(toy.state(model), toy.state(source)), [])
            refit.load_weights(weights.items(), model)
            with self.assertRaisesRegex(RuntimeError, name):
                refit.receipt(model)


if __name__ == "__main__":
    unittest.main()
