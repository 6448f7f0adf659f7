"""The trainer's side, without vLLM: what is sent, what is expected of the engine, and what differs by name."""

import gc
import itertools
import pathlib
import pickle
import subprocess
import sys
import unittest
import weakref

import torch

from fp8rt import comparison, library, trainer
from fp8rt.comparison import MismatchError, Piece, added, compare, holds, merged
from fp8rt.library import Fp8rtError, Policy
from fp8rt.trainer import Outgoing, Shard

GOLDEN = pathlib.Path(__file__).parents[2] / "cpp_tests/golden"
PROJECTION = "model.layers.0.self_attn.q_proj.weight"
RECIPES = ("VLLM", "DEEPGEMM", "NEMO_RL", "TE")
FORMATS = ("FP32", "POW2")


def policy(**keys) -> Policy:
    return Policy({"precision": "fp8", **keys})


def model(seed: int = 1) -> dict[str, torch.Tensor]:
    """In the order of a checkpoint."""
    shapes = {
        "model.embed_tokens.weight": (320, 256),
        "model.layers.0.input_layernorm.weight": (256,),
        PROJECTION: (256, 256),
        "model.layers.0.self_attn.q_proj.bias": (256,),
        "model.layers.0.mlp.down_proj.weight": (256, 200),
        "model.layers.1.mlp.experts.0.up_proj.weight": (130, 256),
        "model.layers.1.mlp.experts.down_proj": (3, 256, 130),
        "model.norm.weight": (256,),
    }
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def answer(values: dict[str, list[str]], of: Policy, **keys) -> dict:
    """What an engine says that holds these."""
    total = added(value for shards in values.values() for value in shards)
    return {"policy": of.fingerprint, "policy_text": of.text, "setup": {}, "weights": values, "total": total, **keys}


def sent(weights, **keys) -> Outgoing:
    outgoing = Outgoing(policy(), **keys)
    for _ in outgoing.tensors(weights):
        pass
    return outgoing


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


class WhatIsSent(unittest.TestCase):
    def test_bytes_are_those_of_the_op(self):
        library.register_ops()
        for recipe, scale_format, shape in itertools.product(RECIPES, FORMATS, ((256, 384), (130, 200), (2, 130, 256))):
            made = Policy({"fp8rt": {"weight": {"recipe": recipe, "scale_format": scale_format}}})
            decision = made.decide(PROJECTION, (256, 256))
            self.assertEqual((decision.weight_recipe, decision.weight_scale_format),
                             (RECIPES.index(recipe) + 1, FORMATS.index(scale_format)))
            weight = torch.randn(shape).bfloat16()
            name = PROJECTION if len(shape) == 2 else "model.layers.1.mlp.experts.down_proj"
            codes, scales = trainer.quantize(name, weight, made)
            codes_of_op, scales_of_op = torch.zeros_like(codes), torch.zeros_like(scales)
            torch.ops.fp8rt.quantize_weight(
                weight, codes_of_op, scales_of_op, decision.weight_recipe, decision.weight_scale_format
            )
            with self.subTest(recipe=recipe, scale_format=scale_format, shape=shape):
                self.assertTrue(same(codes, codes_of_op) and same(scales, scales_of_op))
                back = codes.float() * scales.repeat_interleave(128, -2)[..., : shape[-2], :].repeat_interleave(
                    128, -1
                )[..., : shape[-1]]
                error = (back - weight.float()).norm() / weight.float().norm()
                self.assertLess(float(error), 0.03)

    def test_half_the_bytes_and_what_is_kept_as_it_is(self):
        weights = model()
        outgoing = dict(Outgoing(policy()).tensors(weights.items()))
        for name, weight in weights.items():
            if policy().decide(name, tuple(weight.shape)).fp8:
                self.assertEqual(outgoing[name].dtype, torch.float8_e4m3fn)
                self.assertEqual(outgoing[name].nbytes, weight.nbytes // 2)
                self.assertEqual(outgoing[f"{name}_scale_inv"].dtype, torch.float32)
            else:
                self.assertEqual(outgoing[name].data_ptr(), weight.data_ptr())
                self.assertNotIn(f"{name}_scale_inv", outgoing)
        self.assertEqual([n for n in outgoing if not n.endswith("_scale_inv")], list(weights))

    def test_as_bytes_for_those_who_pickle(self):
        plain = dict(Outgoing(policy()).tensors(model().items()))
        for name, tensor in Outgoing(policy(), as_bytes=True).tensors(model().items()):
            arrived = pickle.loads(pickle.dumps(tensor))
            self.assertEqual(arrived.dtype == torch.uint8, plain[name].dtype == torch.float8_e4m3fn, name)
            self.assertTrue(same(arrived, plain[name]), name)

    def test_one_tensor_at_a_time(self):
        """Nothing that was sent is held when the next is asked for."""
        alive = []

        def weights():
            for name, weight in model().items():
                gc.collect()
                self.assertEqual([one for one in alive if one() is not None], [])
                copy = weight.clone()
                alive.append(weakref.ref(copy))
                yield name, copy
                del copy

        for _ in Outgoing(policy()).tensors(weights()):
            pass
        self.assertEqual(len(alive), len(model()))

    def test_parameters_and_transposed_weights(self):
        weight = torch.randn(256, 384).bfloat16()
        codes, _ = trainer.quantize(PROJECTION, torch.nn.Parameter(weight), policy())
        self.assertFalse(codes.requires_grad)
        turned, _ = trainer.quantize(PROJECTION, weight.t().contiguous().t(), policy())
        self.assertTrue(same(codes, turned))

    def test_shards_give_slices_of_the_whole(self):
        whole = torch.randn(300, 256).bfloat16()
        codes, scales = trainer.quantize(PROJECTION, whole, policy())
        for first, rows in ((0, 128), (128, 172)):
            shard = Shard((300, 256), (first, 0))
            part, its = trainer.quantize(PROJECTION, whole[first : first + rows], policy(), shard)
            self.assertTrue(same(part, codes[first : first + rows]))
            self.assertTrue(torch.equal(its, scales[first // 128 : -(-(first + rows) // 128)]))

    def test_a_cut_inside_a_block_is_refused_by_row(self):
        weight = torch.randn(300, 256).bfloat16()
        for rows, columns, said in (
            (slice(0, 200), slice(0, 256), "ends at row 200 of 300"),
            (slice(200, 300), slice(0, 256), "begins at row 200"),
            (slice(0, 300), slice(64, 256), "begins at column 64"),
        ):
            shard = Shard((300, 256), (rows.start, columns.start))
            with self.assertRaisesRegex(ValueError, f"{PROJECTION}.*{said}"):
                trainer.quantize(PROJECTION, weight[rows, columns], policy(), shard)
            outgoing = Outgoing(policy(), keep_cut_shards=True)
            kept, scales = outgoing.add(PROJECTION, weight[rows, columns], shard)
            self.assertTrue(kept.dtype == torch.bfloat16 and scales is None)
            self.assertIsNone(outgoing.pieces()[PROJECTION][0].value)

    def test_what_is_no_weight_is_an_error_by_name(self):
        with self.assertRaisesRegex(Fp8rtError, f"{PROJECTION}.*float64"):
            trainer.quantize(PROJECTION, torch.zeros(128, 128, dtype=torch.float64), policy())
        with self.assertRaisesRegex(Fp8rtError, f"{PROJECTION}.*float64"):
            Outgoing(policy()).add(PROJECTION, torch.zeros(128, 128, dtype=torch.float64))
        packed = Policy({"fp8rt": {"weight": {"scale_format": "UE8M0_PACKED"}}})
        with self.assertRaisesRegex(Fp8rtError, f"{PROJECTION}.*UE8M0_PACKED"):
            trainer.quantize(PROJECTION, torch.zeros(128, 128), packed)
        for shard in (Shard((256, 128), (200, 0)), Shard((128, 128, 1), (0, 0, 0))):
            with self.assertRaisesRegex(ValueError, PROJECTION):
                trainer.quantize(PROJECTION, torch.zeros(128, 128), policy(), shard)

    def test_the_same_name_twice(self):
        outgoing = Outgoing(policy())
        outgoing.add("model.norm.weight", torch.zeros(8))
        with self.assertRaisesRegex(ValueError, "model.norm.weight was sent twice"):
            outgoing.add("model.norm.weight", torch.zeros(8))


class WhatIsExpected(unittest.TestCase):
    def test_the_definition(self):
        """Against the README's definition in plain Python."""
        sys.path.insert(0, str(GOLDEN))
        import fingerprint

        weights = model()
        expected = sent(weights.items()).expected()
        self.assertEqual(list(expected), list(weights))
        for name, weight in weights.items():
            codes, scales = trainer.quantize(name, weight, policy())
            total = 0
            for expert in range(weight.shape[0] if weight.dim() == 3 else 1):
                matrix = (codes if weight.dim() < 3 else codes[expert]).reshape(-1, weight.shape[-1])
                rows = [row.contiguous().view(torch.uint8).numpy().tobytes() for row in matrix]

                def bits(row, column, expert=expert, scales=scales, weight=weight):
                    if scales is None:
                        return 0
                    grid = scales if weight.dim() < 3 else scales[expert]
                    return int(grid[row, column].view(torch.int32)) & 0xFFFFFFFF

                total += fingerprint.fingerprint(name, 0, (0, 0, expert), rows, bits)
            self.assertEqual(f"{total % (1 << 128):032x}", expected[name], name)

    def test_sent_as_values_or_as_codes(self):
        self.assertEqual(sent(model().items()).expected(), sent(model().items(), send_values=True).expected())
        values = dict(Outgoing(policy(), send_values=True).tensors(model().items()))
        self.assertEqual(list(values), list(model()))
        self.assertTrue(all(value.dtype == torch.bfloat16 for value in values.values()))

    def test_what_an_engine_makes_of_the_values(self):
        """A refit plan is what the engine runs."""
        for name, weight in model().items():
            outgoing = sent([(name, weight)])
            request = trainer.Request(name, weight, policy())
            self.assertEqual(outgoing.expected()[name], trainer.of_boxes(request, None), name)

    def test_shards_of_ranks_add_up(self):
        weights = model()
        ranks = []
        for rank in range(2):
            shards = []
            for name, weight in weights.items():
                if name == PROJECTION:
                    shards.append((name, weight[128 * rank :][:128], Shard((256, 256), (128 * rank, 0))))
                elif name.endswith("down_proj.weight"):
                    columns = slice(128 * rank, 128 * rank + 128)
                    shards.append((name, weight[:, columns], Shard((256, 200), (0, 128 * rank))))
                elif weight.dim() == 3:
                    experts = (slice(0, 2), slice(2, 3))[rank]
                    shards.append((name, weight[experts], Shard((3, 256, 130), (experts.start, 0, 0))))
                elif name == "model.embed_tokens.weight":
                    rows = (slice(0, 128), slice(128, 320))[rank]
                    shards.append((name, weight[rows], Shard((320, 256), (rows.start, 0))))
                else:
                    shards.append((name, weight))
            ranks.append(sent(shards).pieces())
        self.assertEqual(merged(ranks), sent(weights.items()).expected())
        ranks[1].pop(PROJECTION)
        with self.assertRaisesRegex(MismatchError, f"{PROJECTION}.*hold 32768 of 65536 elements"):
            merged(ranks)

    def test_ranks_of_the_trainer_that_differ(self):
        other = model()
        other["model.norm.weight"][7] += 1
        with self.assertRaisesRegex(MismatchError, "model.norm.weight: ranks of the trainer hold different values"):
            merged([sent(model().items()).pieces(), sent(other.items()).pieces()])
        piece = Piece((1, 2, 2), (0, 0, 0), (1, 1, 2), "0")
        with self.assertRaisesRegex(MismatchError, r"a has shape \[1, 2, 2\] and \[1, 3, 2\]"):
            merged([{"a": [piece]}, {"a": [Piece((1, 3, 2), (0, 1, 0), (1, 2, 2), "0")]}])

    def test_more_sums_than_fit_one_chunk(self):
        count = trainer.CHUNK + 3
        expected = sent((f"layer.{i}.norm.weight", torch.full((8,), float(i))) for i in range(count)).expected()
        self.assertEqual(len(set(expected.values())), count)
        alone = sent([("layer.258.norm.weight", torch.full((8,), 258.0))]).expected()
        self.assertEqual(expected["layer.258.norm.weight"], alone["layer.258.norm.weight"])

    def test_what_has_no_fingerprint_is_said(self):
        weights = {"model.steps": torch.zeros(3, dtype=torch.int64), "visual.proj.weight": torch.zeros(2, 3, 2, 2)}
        expected = sent(weights.items()).expected()
        self.assertEqual(expected, {"model.steps": None, "visual.proj.weight": None})
        result = compare(expected, answer({"model.steps": ["0" * 32], "visual.proj.weight": ["0" * 32]}, policy()))
        self.assertEqual((result.compared, list(result.left_out)), (0, list(weights)))

    def test_cuts_of_the_engine_inside_blocks(self):
        weight = model()[PROJECTION]
        cuts = {PROJECTION: [[[[0, 0, 0], [1, 200, 256]]], [[[0, 200, 0], [1, 56, 256]]]]}
        outgoing = Outgoing(policy(), cuts)
        given, scales = outgoing.add(PROJECTION, weight)
        self.assertTrue(given.dtype == torch.bfloat16 and scales is None)
        first, second = outgoing.expected()[PROJECTION]
        self.assertNotEqual(added([first, second]), sent([(PROJECTION, weight)]).expected()[PROJECTION])
        found = answer({PROJECTION: [first, second]}, policy(), cuts=cuts)
        self.assertEqual(compare(outgoing.expected(), found).check().compared, 1)
        result = compare(outgoing.expected(), answer({PROJECTION: [second, first]}, policy(), cuts=cuts))
        self.assertEqual(result.first.name, PROJECTION)
        untold = compare(sent([(PROJECTION, weight)]).expected(), found).check()
        self.assertEqual((untold.compared, list(untold.left_out)), (0, [PROJECTION]))


class WhatDiffers(unittest.TestCase):
    def setUp(self):
        self.weights = model()
        self.expected = sent(self.weights.items()).expected()

    def engine(self, weights=None, ranks: int = 1, of: Policy | None = None, **keys) -> dict:
        held = sent((weights or self.weights).items()).expected()
        return answer({name: [value] * ranks for name, value in held.items()}, of or policy(), **keys)

    def test_equal(self):
        for ranks in (1, 2, 8):
            result = compare(self.expected, self.engine(ranks=ranks), policy()).check()
            self.assertEqual((result.compared, result.left_out, result.first), (len(self.weights), {}, None))

    def test_a_flipped_bit_is_found_by_name(self):
        for name in self.weights:
            for bit in (1 << 6, 1 << 14):
                changed = {key: value.clone() for key, value in self.weights.items()}
                changed[name].view(torch.int16).view(-1)[-1] ^= bit
                found = self.engine(changed)
                result = compare(self.expected, found, policy())
                self.assertEqual([one.name for one in result.different], [name])
                with self.assertRaises(MismatchError) as raised:
                    result.check()
                for part in (name, self.expected[name], found["weights"][name][0]):
                    self.assertIn(part, str(raised.exception))
                self.assertEqual(raised.exception.difference, result.first)

    def test_the_first_in_the_trainers_order(self):
        names = list(self.weights)
        changed = {name: value + 1 for name, value in reversed(self.weights.items())}
        result = compare(self.expected, self.engine(changed), policy())
        self.assertEqual([one.name for one in result.different], names)
        with self.assertRaisesRegex(MismatchError, f"{names[0]}.*{len(names)} differ"):
            result.check()

    def test_a_missing_parameter_and_one_too_many(self):
        found = self.engine()
        gone = found["weights"].pop(PROJECTION)
        found["total"] = added(value for shards in found["weights"].values() for value in shards)
        with self.assertRaisesRegex(MismatchError, f"{PROJECTION}.*{gone[0]}.*holds nothing"):
            compare(self.expected, found, policy()).check()
        result = compare(self.expected, found | {"not_told": {PROJECTION: "no use"}}, policy()).check()
        self.assertEqual(result.left_out, {PROJECTION: "no use"})
        self.expected.pop("model.norm.weight")
        result = compare(self.expected, self.engine(), policy())
        self.assertEqual([one.name for one in result.different], ["model.norm.weight"])
        self.assertIn("the trainer sent none", str(result.first))

    def test_another_policy_in_words_before_all_else(self):
        other = policy(pow2_weight_scaling_factors=True)
        found = self.engine({name: value + 1 for name, value in self.weights.items()}, of=other)
        result = compare(self.expected, found, policy())
        self.assertEqual(result.first.name, "policy")
        for part in ("weight.scale_format", "FP32", "POW2", other.fingerprint, policy().fingerprint):
            self.assertIn(part, str(result.first))
        found.pop("policy_text")
        self.assertIn(other.fingerprint, str(compare(self.expected, found, policy()).first))

    def test_an_answer_that_is_damaged(self):
        found = self.engine()
        found["weights"].pop(PROJECTION)
        with self.assertRaisesRegex(MismatchError, "damaged"):
            compare(self.expected, found)

    def test_shards_and_copies(self):
        one, two, three = (f"{number:032x}" for number in (1, 2, 3))
        self.assertTrue(holds([one, one], one))
        self.assertTrue(holds([one, two], three))
        # Two heads over four ranks.
        self.assertTrue(holds([one, one, two, two], three))
        self.assertFalse(holds([one, one, one, two], three))
        self.assertFalse(holds([one, two], two))
        self.assertFalse(holds([one, one, one], two))
        self.assertFalse(holds([one, one, two], two))
        self.assertEqual(added(["f" * 32, two]), one)


class Receipts(unittest.TestCase):
    GOOD = {"destinations_filled": 5, "num_destinations": 5, "blocks_filled": 9, "blocks_total": 9}

    def test_all_filled(self):
        comparison.check_receipts([self.GOOD, self.GOOD])

    def test_what_is_not(self):
        for receipts, said in (
            ([], "no rank"),
            ([self.GOOD, None], "rank 1 had no refit"),
            ([self.GOOD | {"blocks_filled": 8}], "rank 0 filled 8 of 9 blocks"),
            ([self.GOOD, self.GOOD | {"destinations_filled": 4}], "rank 1 filled 4 of 5 parameters"),
            ([self.GOOD | {"blocks_filled": 0, "blocks_total": 0}], "rank 0 filled 0 of 0 blocks"),
        ):
            with self.assertRaisesRegex(MismatchError, said):
                comparison.check_receipts(receipts)


class Imports(unittest.TestCase):
    def test_nothing_here_imported_vllm(self):
        self.assertEqual([name for name in sys.modules if name.split(".")[0] in ("vllm", "fp8rt_vllm")], [])

    def test_with_vllm_and_torch_forbidden(self):
        for forbidden, module in (("vllm", "trainer"), ("torch", "comparison"), ("torch", "library")):
            program = f"import sys; sys.modules['{forbidden}'] = None; import fp8rt.{module}"
            subprocess.run([sys.executable, "-c", program], check=True)


if __name__ == "__main__":
    unittest.main()
