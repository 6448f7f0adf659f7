"""What to ask of a running engine: a mixin for people's worker extension, and the calls that use it.

    LLM(..., worker_extension_cls="fp8rt_vllm.worker.WorkerExtension")

or a class of one's own that inherits from it.
"""

from typing import Any

from .health import MixedModelError

BITS = 128


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
        from . import agreement, refit

        config = self.vllm_config.quant_config
        return {
            "policy": config.policy.fingerprint,
            "setup": agreement.setup(config),
            "weights": refit.fingerprint(self.model_runner),
        }

    def fp8rt_report(self) -> dict[str, str]:
        """What runs how on this rank, by module."""
        return self.vllm_config.quant_config.report()


def fingerprint(llm: Any) -> dict[str, Any]:
    """Of the whole engine, to compare with another replica (all of it is equal) or with the trainer (see `holds`).

    `policy`: of the settings. `weights`: for each name of the checkpoint the values of the ranks that hold some of it.
    `total`: the sum of all values of all ranks.
    """
    ranks = ask(llm, "fp8rt_fingerprint")
    policies = sorted({rank["policy"] for rank in ranks})
    if len(policies) > 1:
        raise RuntimeError(f"the ranks have different policies: {', '.join(policies)}")
    weights: dict[str, list[str]] = {}
    for rank in ranks:
        for name, value in rank["weights"].items():
            weights.setdefault(name, []).append(value)
    values = [value for shards in weights.values() for value in shards]
    return {"policy": policies[0], "setup": ranks[0]["setup"], "weights": weights, "total": added(values)}


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


def added(values: list[str]) -> str:
    """The sum of fingerprints, modulo 2^128: that of the whole where shards are cut on blocks."""
    return f"{sum(int(value, 16) for value in values) % (1 << BITS):032x}"


def holds(shards: list[str], whole: str) -> bool:
    """Whether the ranks hold a tensor of this fingerprint: each of them all of it, or each a shard."""
    return all(value == whole for value in shards) or added(shards) == whole
