"""Refits and reloads of routed experts: equal to a fresh start, in place, and errors that name what is missing."""

import itertools
import types
import unittest

import torch
import toy
import toy_moe
import world
from toy_moe import PREFIX

from fp8rt_vllm import refit

# How a checkpoint brings experts: singly, or as slabs that are transposed or not.
FORMS = (None, False, True)


def brought(seed: int, form: bool | None) -> dict[str, torch.Tensor]:
    single = toy_moe.weights(seed)
    return single if form is None else toy_moe.slabs(single, form)


def serialized(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as codes and scales."""
    found = {}
    for name, weight in weights.items():
        if ".experts." not in name:
            found[name] = weight
            continue
        swapped = weight.dim() == 3 and weight.shape[1:] in ((384, 512), (256, 384))
        whole = weight.transpose(1, 2).contiguous() if swapped else weight
        pairs = [toy_moe.quantized(matrix) for matrix in whole.reshape(-1, *whole.shape[-2:])]
        codes = torch.stack([pair[0] for pair in pairs]).view(torch.float8_e4m3fn).view(whole.shape)
        scales = torch.stack([pair[1] for pair in pairs]).view(*whole.shape[:-2], *pairs[0][1].shape)
        if swapped:
            codes, scales = codes.transpose(1, 2).contiguous(), scales.transpose(1, 2).contiguous()
        found |= {name: codes, f"{name}_scale_inv": scales}
    return found


def recorded(config, **keys) -> torch.nn.Module:
    """A model as vLLM's initialize_model leaves it."""
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    model = toy_moe.make(config, **keys)
    record_metadata_for_reloading(model)
    return model


def reload(model: torch.nn.Module, weights: dict) -> None:
    """What vLLM's model runner does around load_weights."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    initialize_layerwise_reload(model)
    model.load_weights(weights.items())
    finalize_layerwise_reload(model, types.SimpleNamespace(dtype=torch.bfloat16))


class RefitTest(unittest.TestCase):
    def setUp(self):
        self.enterContext(world.world("dummy"))
        self.enterContext(toy_moe.cpu_kernel())

    def differs(self, model, seed: int, **ranks) -> list[str]:
        return toy_moe.differs(toy_moe.layer_of(model), toy_moe.expected(toy_moe.weights(seed), **ranks))

    def test_refits_equal_a_fresh_start_in_place(self):
        ranks = ({}, {"tp": (1, 2)}, {"ep": (0, 2)}, {"ep": (1, 2)})
        for form, rank in itertools.product(FORMS, ranks):
            with self.subTest(form=form, rank=rank):
                self.refits(form, rank)

    def refits(self, form, rank):
        keys = {"ranks": toy_moe.parallel(**rank), "transposed": bool(form)}
        model = toy.processed(toy_moe.make(world.config(), **keys))
        before, kernel = toy.addresses(model), toy_moe.layer_of(model).quant_method.moe_kernel
        for seed, size in ((1, 3), (2, 5), (3, 100)):
            items = list(brought(seed, form).items())
            for begin in range(0, len(items), size):
                copies = [(name, weight.clone()) for name, weight in items[begin : begin + size]]
                refit.load_weights(copies, model)
                # The caller reuses its buffer.
                for _, copy in copies:
                    copy.fill_(9)
            receipt = refit.receipt(model)
            self.assertEqual(receipt["blocks_filled"], receipt["blocks_total"])
            self.assertEqual(refit.of(model).record.direct, set())
            self.assertEqual(self.differs(model, seed, **rank), [])
            gate = brought(seed, form)["layers.0.mlp.gate.weight"]
            self.assertTrue(torch.equal(model.layers[0].mlp.gate.weight, gate))
        toy.processed(model)
        self.assertEqual(toy.addresses(model), before)
        self.assertIs(toy_moe.layer_of(model).quant_method.moe_kernel, kernel)

    def test_experts_of_other_ranks_fill_nothing(self):
        model = toy.processed(toy_moe.make(world.config(), ranks=toy_moe.parallel(ep=(1, 2))))
        weights = toy_moe.weights(1)
        refit.load_weights(weights.items(), model)
        refit.receipt(model)
        boxes = refit.of(model).record.boxes
        self.assertEqual({name for name in weights if boxes[name]}, {
            name for name in weights if not name.startswith((f"{PREFIX}.0.", f"{PREFIX}.1."))
        })
        prints = refit.fingerprint(model)
        self.assertIn(f"{PREFIX}.2.up_proj.weight", prints)
        self.assertNotIn(f"{PREFIX}.1.up_proj.weight", prints)

    def test_plain_load_weights_between_refits(self):
        model = toy.processed(toy_moe.make(world.config()))
        before = toy.addresses(model)
        refit.load_weights(toy_moe.weights(1).items(), model)
        model.load_weights(toy_moe.weights(2).items())
        toy.processed(model)
        self.assertEqual(self.differs(model, 2), [])
        refit.load_weights(toy_moe.weights(3).items(), model)
        refit.receipt(model)
        self.assertEqual(self.differs(model, 3), [])
        self.assertEqual(toy.addresses(model), before)

    def test_codes_and_scales(self):
        for form in FORMS:
            with self.subTest(form=form):
                model = toy.processed(toy_moe.make(world.config(), transposed=bool(form)))
                for seed in (1, 2):
                    pairs = serialized(brought(seed, form))
                    # Scales come a bucket before or after their codes.
                    for item in pairs.items() if seed == 1 else reversed(pairs.items()):
                        refit.load_weights([item], model)
                    refit.receipt(model)
                    self.assertEqual(self.differs(model, seed), [])

    def test_names_the_expert_that_is_missing(self):
        model = toy.processed(toy_moe.make(world.config()))
        weights = toy_moe.weights(1)
        gone = {name: weights.pop(name) for name in (f"{PREFIX}.2.up_proj.weight",)}
        refit.load_weights(weights.items(), model)
        with self.assertRaisesRegex(RuntimeError, f"{PREFIX}.routed_experts.w13_weight"):
            refit.receipt(model)
        refit.load_weights(gone.items(), model)
        refit.receipt(model)
        refit.load_weights(weights.items(), model)
        with self.assertRaisesRegex(RuntimeError, f"{PREFIX}.routed_experts.w13_weight.*expert 2"):
            refit.receipt(model)

    def test_a_scale_that_never_arrives(self):
        model = toy.processed(toy_moe.make(world.config()))
        pairs = serialized(toy_moe.weights(1))
        del pairs[f"{PREFIX}.1.down_proj.weight_scale_inv"]
        refit.load_weights(pairs.items(), model)
        with self.assertRaisesRegex(RuntimeError, f"{PREFIX}.1.down_proj.weight"):
            refit.receipt(model)

    def test_half_of_a_pair_after_all_else_is_not_lost(self):
        """It begins no refit yet, and must not wait in silence for the codes of the next."""
        model = toy.processed(toy_moe.make(world.config()))
        for _ in range(2):
            refit.load_weights(toy_moe.weights(1).items(), model)
            refit.receipt(model)
        name = f"{PREFIX}.1.down_proj.weight_scale_inv"
        refit.load_weights([(name, torch.ones(3, 2))], model)
        with self.assertRaisesRegex(RuntimeError, f"{name} did not arrive whole"):
            refit.receipt(model)
        refit.begin(model)
        refit.load_weights(toy_moe.weights(2).items(), model)
        refit.receipt(model)
        self.assertEqual(self.differs(model, 2), [])

    def test_a_loader_that_casts(self):
        """Some models copy a slab that they made themselves, without a loader."""
        model = toy.processed(toy_moe.make(world.config()))
        layer = toy_moe.layer_of(model)

        def load(weights):
            for name, weight in weights:
                if name.endswith("down_proj"):
                    layer.w2_weight.copy_(weight.permute(0, 2, 1).contiguous())
                    yield "w2_weight"

        layer.load_weights = load
        with self.assertRaisesRegex(RuntimeError, "w2_weight: a loader casts"):
            refit.load_weights([(f"{PREFIX}.down_proj", torch.zeros(4, 256, 384).bfloat16())], model)


class ReloadTest(unittest.TestCase):
    def setUp(self):
        self.enterContext(world.world())
        self.enterContext(toy_moe.cpu_kernel())

    def test_reloads_equal_a_fresh_start_at_the_same_addresses(self):
        kinds = [(None, False), (False, False), (True, False), (None, True)]
        for (form, codes), rank in itertools.product(kinds, ({}, {"ep": (1, 2)})):
            with self.subTest(form=form, codes=codes, rank=rank):
                made = serialized if codes else dict
                keys = {"ranks": toy_moe.parallel(**rank), "transposed": bool(form)}
                model = recorded(world.config(serialized=codes), **keys)
                model.load_weights(made(brought(1, form)).items())
                toy.processed(model)
                layer = toy_moe.layer_of(model)
                before, kernel = toy.addresses(model), layer.quant_method.moe_kernel
                identities = {name: id(parameter) for name, parameter in model.named_parameters()}
                loaders = self.loaders(layer)
                for seed in (2, 3):
                    weights = made(brought(seed, form))
                    reload(model, weights if seed == 2 else dict(reversed(weights.items())))
                    wanted = toy_moe.expected(toy_moe.weights(seed), **rank)
                    self.assertEqual(toy_moe.differs(layer, wanted), [])
                    self.assertEqual(toy.addresses(model), before)
                    self.assertEqual({name: id(parameter) for name, parameter in model.named_parameters()}, identities)
                    self.assertEqual(self.loaders(layer), loaders)
                    self.assertIs(layer.quant_method.moe_kernel, kernel)
                # What the kernel reads is what was reloaded.
                config = layer.quant_method.moe_quant_config
                self.assertEqual(config.w1_scale.data_ptr(), layer.w13_weight_scale_inv.data_ptr())

    def loaders(self, layer) -> dict:
        return {name: parameter.weight_loader for name, parameter in layer.named_parameters()}

    def test_serialized_slabs_through_vllms_own_loader(self):
        """vLLM 0.25.1 transposes their scales by a guess, where the shapes fit even in silence. Then it is an error."""
        for form, hidden in ((False, 384), (True, 384), (False, 512)):
            single = toy_moe.weights(1, hidden=hidden)
            pairs = serialized(toy_moe.slabs(single, form))
            for weights in (pairs, dict(reversed(pairs.items()))):
                model = recorded(world.config(serialized=True), hidden=hidden, transposed=form)
                if not toy_moe.told():
                    with self.assertRaisesRegex((ValueError, RuntimeError), f"{PREFIX}.w.*_weight"):
                        model.load_weights(weights.items())
                        toy.processed(model)
                    continue
                model.load_weights(weights.items())
                toy.processed(model)
                self.assertEqual(toy_moe.differs(toy_moe.layer_of(model), toy_moe.expected(single)), [])

    def test_scales_that_were_turned_by_mistake_are_noticed_at_once(self):
        """Where gate and up make a square slab, their shapes alone do not tell."""
        if toy_moe.told():
            # Only vLLM 0.25.1 guesses: then a caller of the loaders may still mistake one for the other.
            model = recorded(world.config(serialized=True))
            layer, call = toy_moe.layer_of(model), {"weight_name": "w2_weight", "shard_id": "w2", "expert_id": 0}
            layer.w2_weight.weight_loader(layer.w2_weight, torch.zeros(384, 256).to(torch.float8_e4m3fn), **call)
            with self.assertRaisesRegex(ValueError, "w2_weight, expert 0: of codes and scales"):
                scales = layer.w2_weight_scale_inv
                scales.weight_loader(scales, torch.ones(2, 3).t(), **call)
            return
        pairs = serialized(toy_moe.slabs(toy_moe.weights(1, hidden=512), False))
        names = (f"{PREFIX}.gate_up_proj", f"{PREFIX}.gate_up_proj_scale_inv")
        for order in (names, names[::-1]):
            model = recorded(world.config(serialized=True), hidden=512)
            with self.assertRaisesRegex(ValueError, "w13_weight, expert 0: of codes and scales"):
                model.load_weights((name, pairs[name]) for name in order)

    def test_what_never_arrives(self):
        for codes, gone in ((False, "3.down_proj.weight"), (True, "3.down_proj.weight_scale_inv")):
            made = serialized if codes else dict
            model = recorded(world.config(serialized=codes))
            model.load_weights(made(toy_moe.weights(1)).items())
            toy.processed(model)
            weights = made(toy_moe.weights(2))
            del weights[f"{PREFIX}.{gone}"]
            with self.assertRaisesRegex(RuntimeError, f"{PREFIX}.w2_weight: of "):
                reload(model, weights)


if __name__ == "__main__":
    unittest.main()
