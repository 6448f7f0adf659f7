"""vLLM's layerwise reload (reload_weights, start/update/finish_weight_update) over layers of ours."""

import types
import unittest

import torch
import toy
import world


def reload(model: torch.nn.Module, weights) -> None:
    """What vLLM's model runner does around load_weights."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    initialize_layerwise_reload(model)
    model.load_weights(weights)
    finalize_layerwise_reload(model, types.SimpleNamespace(dtype=torch.bfloat16))


def recorded(config) -> torch.nn.Module:
    """A model as vLLM's initialize_model leaves it."""
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    model = toy.make(config)
    record_metadata_for_reloading(model)
    return model


def checkpoint(model: torch.nn.Module, weights: dict) -> dict:
    """The same weights as codes and scales where layers of ours hold them."""
    found = {}
    for name, weight in weights.items():
        if "_proj.weight" not in name:
            found[name] = weight
            continue
        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        scales = torch.empty(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
        torch.ops.fp8rt.quantize_weight(weight, codes, scales)
        found[name], found[f"{name}_scale_inv"] = codes, scales
    return found


class ReloadTest(unittest.TestCase):
    def fresh(self, weights: dict, config=None) -> torch.nn.Module:
        model = recorded(config or world.config())
        model.load_weights(weights.items())
        return toy.processed(model)

    def test_reload_equals_a_fresh_start_at_the_same_addresses(self):
        with world.world():
            model = self.fresh(toy.values(1))
            before = toy.addresses(model)
            loaders = {
                name: parameter.weight_loader
                for name, parameter in model.named_parameters()
                if hasattr(parameter, "weight_loader")
            }
            identities = {name: id(parameter) for name, parameter in model.named_parameters()}
            for seed in (2, 3):
                reload(model, toy.values(seed).items())
                self.assertEqual(toy.same(toy.state(model), toy.state(self.fresh(toy.values(seed)))), [])
                self.assertEqual(toy.addresses(model), before)
                self.assertEqual({name: id(parameter) for name, parameter in model.named_parameters()}, identities)
                self.assertEqual({name: model.get_parameter(name).weight_loader for name in loaders}, loaders)

    def test_layers_are_processed_as_soon_as_they_are_whole(self):
        """Every element is counted: nothing waits for the end, which would hold the whole model twice."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        with world.world():
            model = self.fresh(toy.values(1))
            initialize_layerwise_reload(model)
            model.load_weights(toy.values(2).items())
            waiting = [
                name
                for name, module in model.named_modules()
                if hasattr(module, "fp8rt") and get_layerwise_info(module).can_load()
            ]
            self.assertEqual(waiting, [])

    def test_serialized_reload(self):
        config = world.config(serialized=True)
        with world.world():
            weights = [checkpoint(None, toy.values(seed)) for seed in (1, 2)]
            model = self.fresh(weights[0], config)
            before = toy.addresses(model)
            self.assertEqual(toy.same(toy.state(self.fresh(toy.values(1))), toy.state(model)), [])
            for turn in (dict(weights[1]), dict(reversed(weights[1].items()))):
                reload(model, turn.items())
                self.assertEqual(toy.same(toy.state(self.fresh(toy.values(2))), toy.state(model)), [])
                self.assertEqual(toy.addresses(model), before)

    def test_a_scale_that_never_arrives(self):
        config = world.config(serialized=True)
        with world.world():
            weights = checkpoint(None, toy.values(1))
            model = self.fresh(weights, config)
            del weights["layers.1.self_attn.k_proj.weight_scale_inv"]
            with self.assertRaisesRegex(RuntimeError, "layers.1.self_attn.qkv_proj: .*scales for"):
                reload(model, weights.items())
            with self.assertRaisesRegex(RuntimeError, "layers.1.self_attn.qkv_proj: .*scales for"):
                self.fresh(weights, config)

    def test_a_part_that_never_arrives(self):
        with world.world():
            model = self.fresh(toy.values(1))
            weights = toy.values(2)
            del weights["layers.0.mlp.up_proj.weight"]
            with self.assertRaisesRegex(RuntimeError, "layers.0.mlp.gate_up_proj"):
                reload(model, weights.items())


if __name__ == "__main__":
    unittest.main()
