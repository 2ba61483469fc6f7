"""Success rates and how far to trust them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import comb, sqrt


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a success probability; z = 1.96 gives 95 % coverage.

    centre = (p + z²/2n) / (1 + z²/n),  half width = z / (1 + z²/n) · sqrt(p(1 - p)/n + z²/4n²)   (Wilson, 1927)
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"expected 0 <= successes <= trials and at least one trial, got {successes} of {trials}")
    p, shrink = successes / trials, 1 + z**2 / trials
    centre = (p + z**2 / (2 * trials)) / shrink
    half_width = z / shrink * sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


@dataclass(frozen=True)
class SuccessRate:
    """Successes among trials, with the 95 % Wilson interval [low, high] of the rate."""

    successes: int
    trials: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> "SuccessRate":
        outcomes = list(outcomes)
        successes, trials = sum(outcomes), len(outcomes)
        low, high = wilson_interval(successes, trials)
        return cls(successes, trials, successes / trials, low, high)

    def __str__(self) -> str:
        return f"{self.successes}/{self.trials} = {self.rate:.0%} [{self.low:.0%}, {self.high:.0%}]"

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class PairedComparison:
    """Two runs on the same episodes.

    Attributes:
        only_first, only_second: episodes that one solved and the other did not.
        difference: of the success rates, first minus second.
        p_value: exact McNemar test, two-sided: how likely so uneven a split of these episodes is if both are as good.
    """

    trials: int
    only_first: int
    only_second: int
    difference: float
    p_value: float

    @classmethod
    def of(cls, first: Iterable[bool], second: Iterable[bool]) -> "PairedComparison":
        """Outcomes of the same episodes in the same order (McNemar, 1947).

        Raises:
            ValueError: different numbers of episodes, or none.
        """
        first, second = list(first), list(second)
        if len(first) != len(second) or not first:
            raise ValueError(f"expected outcomes of the same episodes, got {len(first)} and {len(second)}")
        only_first = sum(a and not b for a, b in zip(first, second, strict=True))
        only_second = sum(b and not a for a, b in zip(first, second, strict=True))
        split = only_first + only_second
        tail = sum(comb(split, k) for k in range(min(only_first, only_second) + 1)) / 2**split
        return cls(len(first), only_first, only_second, (only_first - only_second) / len(first), min(1.0, 2 * tail))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)
