"""Success rates and how far to trust them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import sqrt


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
