"""A policy that is told something else than its task, for a while or all along."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..evaluation.environment import Observation
from ..evaluation.policy_predictor import PolicyPredictor


@dataclass(frozen=True)
class Told:
    """The `Predict` function of a policy under changed instructions.

    Attributes:
        instead: task -> the instruction that it gets; others get their own.
        until: from this step on it gets its own after all; None: never.
    """

    predictor: PolicyPredictor
    instead: Mapping[str, str]
    until: int | None = None

    def __call__(self, observations: list[Observation]) -> np.ndarray:
        """Action chunks [B, horizon, action_dim]."""
        return self.predictor([self.heard(seen) for seen in observations])

    def heard(self, seen: Observation) -> Observation:
        """The observation with the instruction that the policy gets with it."""
        if seen.task not in self.instead or (self.until is not None and seen.step >= self.until):
            return seen
        return replace(seen, instruction=self.instead[seen.task])
