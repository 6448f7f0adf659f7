#!/usr/bin/env python3
"""The study's own parts, without vLLM and without a GPU: metrics, NeMo-RL's cast, the model, plots and checks."""

import itertools
import math
import pathlib
import tempfile
import unittest
import xml.etree.ElementTree

import torch

import casts
import metrics
import plot
import settings
import study
import train
from fp8rt import trainer
from fp8rt.library import Policy


class Metrics(unittest.TestCase):
    def test_equal(self):
        found = metrics.metrics([[-1.0, -2.0], [-3.0]], [[-1.0, -2.0], [-3.0]])
        self.assertEqual(found["token_mult_prob_error"], 1.0)
        self.assertEqual((found["gen_kl_error"], found["worst_difference"], found["share_above_1.1"]), (0, 0, 0))
        self.assertEqual((found["standard_error"], found["tokens"]), (0, 3))

    def test_by_hand(self):
        # Probabilities 0.5 and 0.25 were sampled, and are 0.25 and 0.5 to the trainer; the third is equal.
        half, quarter = math.log(0.5), math.log(0.25)
        found = metrics.metrics([[half, quarter], [half]], [[quarter, half], [half]])
        self.assertAlmostEqual(found["token_mult_prob_error"], (2 + 2 + 1) / 3)
        # Training over generation is 0.5, 2 and 1: x - log x - 1.
        self.assertAlmostEqual(found["gen_kl_error"], ((0.5 + math.log(2) - 1) + (2 - math.log(2) - 1)) / 3)
        self.assertAlmostEqual(found["worst_difference"], math.log(2))
        self.assertAlmostEqual(found["share_above_1.1"], 2 / 3)

    def test_the_estimator_is_of_generation_to_training(self):
        """Over all tokens, each as often as the engine samples it: KL(generation || training)."""
        generation, training = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]
        counts = [7, 2, 1]
        sampled = [[math.log(p)] * n for p, n in zip(generation, counts, strict=True)]
        scored = [[math.log(p)] * n for p, n in zip(training, counts, strict=True)]
        exact = sum(p * math.log(p / q) for p, q in zip(generation, training, strict=True))
        other = sum(q * math.log(q / p) for p, q in zip(generation, training, strict=True))
        self.assertAlmostEqual(metrics.metrics(sampled, scored)["gen_kl_error"], exact)
        self.assertNotAlmostEqual(exact, other, places=3)

    def test_a_factor_of_exactly_the_bound_is_not_above(self):
        found = metrics.metrics([[0.0, 0.0]], [[-math.log(1.05), -math.log(1.2)]])
        self.assertEqual(found["share_above_1.1"], 0.5)

    def test_standard_error_is_over_sequences(self):
        """Of sequences of one token it is that of the mean."""
        values = [1.0, 2.0, 4.0, 5.0]
        middle = sum(values) / 4
        spread = math.sqrt(sum((value - middle) ** 2 for value in values) / 3)
        self.assertAlmostEqual(metrics.standard_error([[value] for value in values]), spread / 2)
        alike = metrics.standard_error([[value] * 10 for value in values])
        self.assertAlmostEqual(alike, spread / 2)
        self.assertEqual(metrics.standard_error([[1.0, 2.0]]), math.inf)

    def test_what_is_refused(self):
        for sampled, scored, said in (
            ([[0.0]], [], "1 sequences were sampled, 0 were scored"),
            ([[0.0]], [[0.0, 0.0]], "sequence 0: 1 tokens were sampled, 2"),
            ([[0.0], [math.nan]], [[0.0], [0.0]], "sequence 1, token 0: nan"),
            ([[-math.inf]], [[0.0]], "sequence 0, token 0: -inf"),
            ([[]], [[]], "no token"),
        ):
            with self.assertRaisesRegex(ValueError, said):
                metrics.metrics(sampled, scored)

    def test_ratio(self):
        one = {"token_mult_prob_error": 1.02, "standard_error": 0.001}
        other = {"token_mult_prob_error": 1.01, "standard_error": 0.001}
        value, error = metrics.ratio(one, other)
        self.assertAlmostEqual(value, 2)
        self.assertAlmostEqual(error, 2 * math.hypot(0.05, 0.1))
        exact = {"token_mult_prob_error": 1.0, "standard_error": 0.0}
        self.assertEqual(metrics.ratio(exact, exact), (1.0, 0.0))
        self.assertEqual(metrics.ratio(one, exact), (math.inf, 0.0))


class Casts(unittest.TestCase):
    def test_nemo_rls_is_our_recipe(self):
        weight = (0.02 * torch.randn(256, 384)).bfloat16()
        weight[:128, :128] = 0
        codes, scales = casts.nemo_rl(weight)
        policy = Policy({"precision": "fp8"})
        ours = trainer.quantize("model.layers.0.mlp.up_proj.weight", weight, policy)
        self.assertTrue(torch.equal(codes.view(torch.uint8), ours[0].view(torch.uint8)))
        self.assertTrue(torch.equal(scales, ours[1]))
        with self.assertRaisesRegex(ValueError, "130x128"):
            casts.nemo_rl(torch.zeros(130, 128))

    def test_a_checkpoint(self):
        with tempfile.TemporaryDirectory() as folder:
            source, made = pathlib.Path(folder, "model"), pathlib.Path(folder, "made")
            source.mkdir()
            (source / "config.json").write_text("{}")
            (source / "prompts.json").write_text("[]")
            weights = {"a.up_proj.weight": torch.randn(128, 128).bfloat16(), "norm.weight": torch.ones(4).bfloat16()}
            casts.safetensors.torch.save_file(weights, source / "model.safetensors")
            casts.write_checkpoint(source, made, "nemo_rl", "cpu")
            found = casts.safetensors.torch.load_file(made / "model.safetensors")
        self.assertEqual(set(found), {*weights, "a.up_proj.weight_scale_inv"})
        back = found["a.up_proj.weight"].float() * found["a.up_proj.weight_scale_inv"]
        self.assertLess(float((back - weights["a.up_proj.weight"].float()).abs().max()), 0.2)


class Model(unittest.TestCase):
    def test_names_are_those_of_a_checkpoint(self):
        names = list(train.Llama(train.config("tiny")).state_dict())
        self.assertIn("model.layers.2.self_attn.k_proj.weight", names)
        self.assertIn(settings.BROKEN, names)
        self.assertEqual((names[0], names[-1]), ("model.embed_tokens.weight", "lm_head.weight"))

    def test_it_computes_as_transformers_does(self):
        import transformers

        c = train.config("tiny")
        torch.manual_seed(0)
        own = train.Llama(c)
        other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**c)).float()
        other.load_state_dict(own.state_dict())
        tokens = torch.randint(256, (2, 33))
        with torch.no_grad():
            mine, theirs = own(tokens), other(tokens).logits
        self.assertLess(float((mine - theirs).abs().max()), 1e-4)

    def test_it_learns(self):
        torch.manual_seed(0)
        model = train.Llama(train.config("tiny") | {"num_hidden_layers": 1})
        # By steps, since a busy machine makes fewer of them in a time.
        done = train.train(model, bytes(range(64)) * 200, 80, (4, 32), "cpu", now=itertools.count().__next__)
        self.assertEqual(done["steps"], 79)
        self.assertLess(done["loss"], 3)

    def test_prompts_are_held_out(self):
        trained, held_out = train.library()
        self.assertLess(len(held_out), len(trained) / 5)
        for prompt in train.prompts(held_out, 7):
            self.assertEqual(len(prompt), train.PROMPT)
            self.assertIn(bytes(prompt), held_out)


def result(error: float, group: str) -> dict:
    return {
        "group": group,
        "token_mult_prob_error": 1 + error,
        "standard_error": 0.0001,
        "gen_kl_error": 1e-4,
        "worst_difference": 0.1,
        "share_above_1.1": 0.01,
        "tokens": 10,
    }


class Checks(unittest.TestCase):
    FLOOR, CONTROL = settings.FLOOR.settings[0].name, "control: one scale doubled"

    def found(self, floor=0.001, ours=0.01, best=0.01, control=0.5) -> dict:
        return {
            self.FLOOR: result(floor, "floor"),
            settings.DEFAULT: result(ours, "ours"),
            "a": result(2 * best, "peer"),
            "b": result(best, "peer"),
            self.CONTROL: result(control, "control"),
        }

    def test_each_can_fail(self):
        def holds(**keys) -> list:
            return [holds for _, holds in study.compared(self.found(**keys))]

        self.assertEqual(holds(), [True, True, True])
        self.assertEqual(holds(ours=0.01021), [False, True, True])
        self.assertEqual(holds(floor=0.02), [True, False, True])
        self.assertEqual(holds(control=0.02), [True, True, False])
        self.assertIn("as b", study.compared(self.found())[0][0])

    def test_what_is_missing_is_not_said_to_hold(self):
        found = self.found()
        for name in ("a", "b", self.CONTROL):
            found.pop(name)
        self.assertEqual([holds for _, holds in study.compared(found)], [None, True, None])

    def test_names_are_unique_and_every_recipe_is_there(self):
        names = [setting.name for engine in settings.ENGINES for setting in engine.settings]
        self.assertEqual(len(names), len(set(names)))
        recipes = {setting.recipe for engine in settings.ENGINES for setting in engine.settings}
        self.assertEqual(recipes, {None, "NEMO_RL", "TE", "DEEPGEMM", "VLLM"})


class Plots(unittest.TestCase):
    def test_bars_are_as_long_as_their_values(self):
        # The longest reaches two standard errors beyond its value.
        svg = plot.chart({"one": result(0.0098, "peer"), "two <2>": result(0.005, "ours")}, "token_mult_prob_error")
        root = xml.etree.ElementTree.fromstring(svg)
        bars = [one for one in root.iter() if one.tag.endswith("rect") and one.get("x")]
        widths = [float(bar.get("width")) for bar in bars]
        for width, share in zip(widths, (0.98, 0.5), strict=True):
            self.assertAlmostEqual(width, plot.WIDTH * share, delta=0.1)
        self.assertEqual([bar.get("fill") for bar in bars], [plot.COLORS["peer"], plot.COLORS["ours"]])
        self.assertIn("two <2>", [one.text for one in root.iter()])

    def test_every_metric_has_one(self):
        found = metrics.metrics([[0.0], [-1.0]], [[-0.1], [-1.0]]) | {"group": "floor"}
        for metric in plot.METRICS:
            xml.etree.ElementTree.fromstring(plot.chart({"a": found}, metric))


if __name__ == "__main__":
    unittest.main()
