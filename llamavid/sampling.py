"""From logits to the next token: greedy, temperature, top-p. One sampler for PyTorch and the runtime."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llamavid.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: sample among the most likely tokens that together reach this probability.
        seed: of the random choice; the same seed gives the same answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < np.inf:
            raise UsageError(f"temperature is {self.temperature}", expected="0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p}", expected="more than 0, at most 1")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}", expected="0 or more")


@dataclass
class Sampler:
    """Draws one token after another; its state is the random stream."""

    sampling: Sampling
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.sampling.seed)

    def pick(self, logits: npt.NDArray[np.floating]) -> int:
        """Next token id from logits [V]."""
        if self.sampling.temperature == 0:
            return int(np.argmax(logits))
        below = logits.astype(np.float64) - logits.max()
        with np.errstate(over="ignore"):  # a temperature of almost nothing: -inf, a probability of 0
            probabilities = np.exp(below / self.sampling.temperature)
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")
        # A token stays when the more likely ones before it have not yet reached top_p.
        before = np.cumsum(probabilities[order]) - probabilities[order]
        kept = order[before < self.sampling.top_p]
        weights = probabilities[kept] / probabilities[kept].sum()
        return int(self._random.choice(kept, p=weights))
