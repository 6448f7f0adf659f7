"""The trainer's expectation against refits of vLLM's own layers: shards, cuts inside blocks, codes and values."""

import types
import unittest

import torch
import toy
import world

import fp8rt_vllm
from fp8rt import comparison
from fp8rt.library import Policy
from fp8rt.trainer import Outgoing
from fp8rt_vllm import places, refit
from fp8rt_vllm.worker import WorkerExtension


def policy() -> Policy:
    return Policy({"precision": "fp8"})


class Engine:
    """Tensor-parallel ranks of a model that was refitted, asked as LLM.collective_rpc does."""

    def __init__(self, ranks: int, inner: int, change=None):
        self.ranks, self.inner, self.models = ranks, inner, []
        for rank in range(ranks):
            with self.world(rank):
                model = toy.processed(toy.make(world.config(), inner))
                if change is not None:
                    change(model)
                self.models.append(model)

    def world(self, rank: int):
        return world.world("dummy", rank, self.ranks)

    def refit(self, weights) -> None:
        for rank, model in enumerate(self.models):
            with self.world(rank):
                for name, weight in weights.items():
                    refit.load_weights([(name, weight)], model)

    def collective_rpc(self, method: str) -> list:
        config = types.SimpleNamespace(quant_config=world.config())
        answers = []
        for rank, model in enumerate(self.models):
            with self.world(rank):
                worker = types.SimpleNamespace(vllm_config=config, model_runner=model)
                answers.append(getattr(WorkerExtension, method)(worker))
        return answers


class TrainerAndEngine(unittest.TestCase):
    def test_every_rank_holds_what_is_expected(self):
        for ranks, inner, cut in (
            (1, 384, set()),
            (1, 200, set()),
            # Keys and values have 64 rows a rank; a norm and a bias of 128 bytes a rank are on blocks.
            (2, 512, {"k_proj.weight", "v_proj.weight"}),
            (2, 384, {"k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight", "down_proj.weight"}),
        ):
            with self.subTest(ranks=ranks, inner=inner):
                engine = Engine(ranks, inner)
                engine.refit(toy.values(1, inner))
                comparison.check_receipts(fp8rt_vllm.receipts(engine))
                found = fp8rt_vllm.fingerprint(engine)
                self.assertEqual({name.split(".", 3)[-1] for name in found["cuts"]}, cut)
                self.compared(engine, Outgoing(policy(), found["cuts"]), 2, len(toy.shapes()))
                self.compared(engine, Outgoing(policy(), found["cuts"], send_values=True), 3, len(toy.shapes()))
                self.compared(engine, Outgoing(policy(), found["cuts"], as_bytes=True), 5, len(toy.shapes()))
                # Without the cuts nothing is told of them, and nothing wrong.
                count = len(toy.shapes()) - 2 * len(cut)
                self.compared(engine, Outgoing(policy(), send_values=True), 4, count)

    def compared(self, engine: Engine, outgoing: Outgoing, seed: int, count: int) -> None:
        engine.refit(dict(outgoing.tensors(toy.values(seed, engine.inner).items())))
        comparison.check_receipts(fp8rt_vllm.receipts(engine))
        found = fp8rt_vllm.fingerprint(engine)
        result = comparison.compare(outgoing.expected(), found, policy()).check()
        self.assertEqual((result.compared, len(result.left_out)), (count, len(toy.shapes()) - count))
        # One bit of the engine's memory.
        layer = engine.models[-1].layers[1].self_attn.o_proj
        layer.weight.data.view(torch.uint8)[3, 5] ^= 1
        result = comparison.compare(outgoing.expected(), fp8rt_vllm.fingerprint(engine), policy())
        self.assertEqual([one.name for one in result.different], ["layers.1.self_attn.o_proj.weight"])
        layer.weight.data.view(torch.uint8)[3, 5] ^= 1

    def test_names_that_the_engine_computes_or_skips(self):
        def change(model):
            model.norm.weight.weight_loader = lambda parameter, weight: parameter.data.copy_(-weight)

        engine = Engine(1, 384, change)
        outgoing = Outgoing(policy())
        weights = toy.values(1) | {"layers.0.rotary.inv_freq": torch.ones(3)}
        engine.refit(dict(outgoing.tensors(weights.items())))
        comparison.check_receipts(fp8rt_vllm.receipts(engine))
        result = comparison.compare(outgoing.expected(), fp8rt_vllm.fingerprint(engine), policy()).check()
        self.assertEqual(
            result.left_out,
            {
                "norm.weight": "the engine's own loader computes it",
                "layers.0.rotary.inv_freq": "the engine has no use for it",
            },
        )

    def test_a_tensor_that_fills_two_parameters(self):
        def change(model):
            model.tied = torch.nn.Embedding(toy.VOCABULARY, toy.HIDDEN, dtype=torch.bfloat16).requires_grad_(False)
            model.embed.weight.weight_loader = lambda parameter, weight: [
                one.data.copy_(weight) for one in (parameter, model.tied.weight)
            ]

        engine = Engine(1, 384, change)
        engine.refit(toy.values(1))
        comparison.check_receipts(fp8rt_vllm.receipts(engine))
        cuts = fp8rt_vllm.fingerprint(engine)["cuts"]
        self.assertEqual(list(cuts), ["embed.weight"])
        self.compared(engine, Outgoing(policy(), cuts), 2, len(toy.shapes()))

    def test_parts_that_one_box_fills(self):
        box = refit.Box("qkv", 0, (0, 128, 0), (1, 300, 256), (0, 0, 0))
        merged = types.SimpleNamespace(state=types.SimpleNamespace(parts=[200, 100, 128]))
        self.assertEqual(
            places.by_parts(box, merged), [((0, 128, 0), (1, 200, 256)), ((0, 328, 0), (1, 100, 256))]
        )
        self.assertEqual(places.by_parts(box, types.SimpleNamespace(state=None)), [((0, 128, 0), (1, 300, 256))])

    def test_before_a_refit_has_ended(self):
        engine, outgoing = Engine(2, 384), Outgoing(policy(), send_values=True)
        engine.refit(dict(outgoing.tensors(toy.values(1).items())))
        found = fp8rt_vllm.fingerprint(engine)
        self.assertEqual((found["cuts"], found["not_told"]), ({}, {}))
        first = comparison.compare(outgoing.expected(), found, policy()).first
        self.assertEqual((first.name, first.found), ("layers.0.self_attn.q_proj.weight", ""))

    def test_a_stale_tensor_is_named(self):
        """A trainer went on, and one tensor of the engine is of the step before."""
        engine, outgoing = Engine(1, 384), Outgoing(policy())
        new = dict(outgoing.tensors(toy.values(2).items()))
        name = "layers.0.mlp.down_proj.weight"
        old = dict(Outgoing(policy()).tensors([(name, toy.values(1)[name])]))
        engine.refit(new | old)
        comparison.check_receipts(fp8rt_vllm.receipts(engine))
        result = comparison.compare(outgoing.expected(), fp8rt_vllm.fingerprint(engine), policy())
        self.assertEqual([one.name for one in result.different], [name])


if __name__ == "__main__":
    unittest.main()
