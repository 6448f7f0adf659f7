"""What to ask of a running engine: a mixin for people's worker extension, and the calls that use it.

    LLM(..., worker_extension_cls="fp8rt_vllm.worker.WorkerExtension")

or a class of one's own that inherits from it.
"""

from collections.abc import Iterable
from typing import Any

from fp8rt.comparison import added

from .health import MixedModelError


class WorkerExtension:
    """Methods for `collective_rpc`. vLLM adds them to its worker, so every name here begins with fp8rt_."""

    def fp8rt_load_weights(self, weights: Any) -> Any:
        from . import refit

        return refit.load_weights(weights, self.model_runner)

    def fp8rt_begin(self) -> None:
        """Gives up a refit of which some is missing: the next bucket is the first of a new one."""
        from . import refit

        refit.begin(self.model_runner)

    def fp8rt_receipt(self) -> dict[str, Any] | None:
        """What the last refit did on this rank; None before the first."""
        from . import refit

        return refit.receipt(self.model_runner)

    def fp8rt_check(self) -> str:
        """Why nothing may be generated from the weights of this rank; empty if all of them are of one version. An error
        that is raised in several ranks would leave vLLM's executor with answers that it did not read.
        """
        from . import health, refit

        try:
            refit.check(self.model_runner)
        except health.MixedModelError as error:
            return str(error)
        return ""

    def fp8rt_fingerprint(self) -> dict[str, Any]:
        """What this rank holds, by the checkpoint's names, and the set-up that it was made with."""
        from . import agreement, places, refit

        config = self.vllm_config.quant_config
        return {
            "policy": config.policy.fingerprint,
            "policy_text": config.policy.text,
            "setup": agreement.setup(config),
            "weights": refit.fingerprint(self.model_runner),
            "kv_scales": refit.cache_fingerprint(self.model_runner),
            **places.places(self.model_runner),
        }

    def fp8rt_report(self) -> dict[str, str]:
        """What runs how on this rank, by module."""
        return self.vllm_config.quant_config.report()


def fingerprint(llm: Any) -> dict[str, Any]:
    """Of the whole engine, to compare with another replica (all of it is equal) or with the trainer
    (`fp8rt.comparison.compare`).

    `policy`: of the settings, whose text is `policy_text`. `weights`: for each name of the checkpoint the values of the
    ranks that hold some of it. `total`: the sum of all values of all ranks. `kv_scales`: as `weights`, of the scales of
    an FP8 KV cache. `cuts`: of tensors whose shards are not on blocks, the boxes of each rank. `not_told`: names that
    came and have no value among the weights, and why.
    """
    ranks = ask(llm, "fp8rt_fingerprint")
    policies = sorted({rank["policy"] for rank in ranks})
    if len(policies) > 1:
        raise RuntimeError(f"the ranks have different policies: {', '.join(policies)}")
    weights = by_name(rank["weights"] for rank in ranks)
    values = [value for shards in weights.values() for value in shards]
    return {
        "policy": policies[0],
        "policy_text": ranks[0].get("policy_text", ""),
        "setup": ranks[0]["setup"],
        "weights": weights,
        "total": added(values),
        "kv_scales": by_name(rank.get("kv_scales", {}) for rank in ranks),
        "cuts": cuts(ranks),
        "not_told": not_told(ranks, weights),
    }


def by_name(ranks: Iterable[dict[str, str]]) -> dict[str, list[str]]:
    """The values of the ranks that hold some of a name."""
    found: dict[str, list[str]] = {}
    for rank in ranks:
        for name, value in rank.items():
            found.setdefault(name, []).append(value)
    return found


def cuts(ranks: list[dict[str, Any]]) -> dict[str, list]:
    """For each name whose shards are not on blocks in some rank, the boxes of the ranks that hold some of it."""
    cut = dict.fromkeys(name for rank in ranks for name in rank.get("not_on_blocks", ()))
    return {name: [rank["boxes"].get(name) for rank in ranks if name in rank["weights"]] for name in cut}


def not_told(ranks: list[dict[str, Any]], weights: dict[str, list[str]]) -> dict[str, str]:
    """Names that came and have no value. What one rank has no use for another may hold."""
    reasons = {name: why for rank in ranks for name, why in rank.get("not_told", {}).items()}
    return {name: why for name, why in reasons.items() if name not in weights}


def receipts(llm: Any) -> list[dict[str, Any]]:
    """What the last refit did, rank by rank."""
    return ask(llm, "fp8rt_receipt")


def check(llm: Any) -> None:
    """Raises unless the weights of every rank are of one version. The engine lives on, as it may not where a step of
    its own finds that out.
    """
    answers = ask(llm, "fp8rt_check")
    if any(answers):
        said = "; ".join(f"rank {rank}: {words}" for rank, words in enumerate(answers) if words)
        raise MixedModelError(said)


def ask(llm: Any, method: str) -> list[Any]:
    answers = llm.collective_rpc(method)
    if not answers:
        raise RuntimeError(f"no worker answered {method}")
    return answers
