"""What reinforcement learning measures of an engine: how far its log-probabilities of its own samples are from the
trainer's. Pure functions of lists.

`sampled` and `scored`: for each sequence the natural log-probabilities of its tokens, of the engine that sampled them
and of the one that stands for the trainer. Definitions are those of NeMo-RL, docs/guides/grpo.md ("Metrics") and its
loss function: gen_kl_error is KL(generation || training) by Schulman's estimator k3 (joschu.net/blog/kl-approx.html),
the `reference_policy_kl_type` of its examples, with r = log p_training - log p_generation: exp(r) - r - 1.
"""

import math
from collections.abc import Sequence

Logprobs = Sequence[Sequence[float]]
# A token counts as far off where the two probabilities differ by more than this factor.
FAR = 1.1


def metrics(sampled: Logprobs, scored: Logprobs) -> dict[str, float]:
    """All of them, and the standard error of the first, over sequences."""
    differences = checked(sampled, scored)
    flat = [value for sequence in differences for value in sequence]
    factors = [[math.exp(abs(value)) for value in sequence] for sequence in differences]
    all_factors = [factor for sequence in factors for factor in sequence]
    return {
        "token_mult_prob_error": mean(all_factors),
        "standard_error": standard_error(factors),
        "gen_kl_error": mean([math.exp(-value) + value - 1 for value in flat]),
        "worst_difference": max(map(abs, flat)),
        "share_above_1.1": mean([float(factor > FAR) for factor in all_factors]),
        "tokens": len(flat),
    }


def checked(sampled: Logprobs, scored: Logprobs) -> list[list[float]]:
    """log p_generation - log p_training. Raises where the two are not of the same tokens, or not finite."""
    if len(sampled) != len(scored):
        raise ValueError(f"{len(sampled)} sequences were sampled, {len(scored)} were scored")
    differences = []
    for index, (one, other) in enumerate(zip(sampled, scored, strict=True)):
        if len(one) != len(other):
            raise ValueError(f"sequence {index}: {len(one)} tokens were sampled, {len(other)} were scored")
        values = [a - b for a, b in zip(one, other, strict=True)]
        for token, value in enumerate(values):
            if not math.isfinite(value):
                raise ValueError(f"sequence {index}, token {token}: {one[token]} was sampled, {other[token]} scored")
        differences.append(values)
    if not any(differences):
        raise ValueError("no token was sampled")
    return differences


def mean(values: Sequence[float]) -> float:
    """Summed without loss: a floor may be 1 + 1e-6."""
    return math.fsum(values) / len(values)


def standard_error(sequences: Sequence[Sequence[float]]) -> float:
    """Of the mean over all tokens; the tokens of a sequence depend on each other, sequences do not."""
    total = sum(map(len, sequences))
    middle = mean([value for sequence in sequences for value in sequence])
    if len(sequences) < 2:
        return math.inf
    squares = math.fsum((math.fsum(sequence) - middle * len(sequence)) ** 2 for sequence in sequences)
    return math.sqrt(squares * len(sequences) / (len(sequences) - 1)) / total


def ratio(one: dict[str, float], other: dict[str, float]) -> tuple[float, float]:
    """How many times as far from 1 the first token_mult_prob_error is, and the standard error of that."""
    mine, theirs = one["token_mult_prob_error"] - 1, other["token_mult_prob_error"] - 1
    if theirs == 0:
        return (1.0 if mine == 0 else math.inf), 0.0
    value = mine / theirs
    relative = math.hypot(one["standard_error"] / mine if mine else 0.0, other["standard_error"] / theirs)
    return value, value * relative
