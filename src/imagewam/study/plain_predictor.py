"""A policy without an editing model as the `Predict` function of rollouts."""

import numpy as np
import torch

from ..evaluation.environment import Observation
from ..inference.noise import noise_generator
from ..processing_imagewam import ImageWAMProcessor
from .plain_policies import PlainPolicy

SEED = 0  # as `PolicyPredictor` has where it is not told


class PlainPredictor:
    """Observations in, action chunks in physical units out; noise as `PolicyPredictor` draws it."""

    def __init__(self, policy: PlainPolicy, processor: ImageWAMProcessor):
        self.policy, self.processor = policy.eval(), processor

    def __call__(self, observations: list[Observation]) -> np.ndarray:
        """Action chunks [B, horizon, action_dim]; one by one, so that nothing depends on who shares the batch."""
        return np.concatenate([self._chunk(seen) for seen in observations])

    @torch.inference_mode()
    def _chunk(self, seen: Observation) -> np.ndarray:
        inputs = self.processor(
            images=[seen.images], instruction=[seen.instruction], state=seen.state[None], return_tensors="pt"
        ).to(next(self.policy.parameters()).device)
        actions = self.policy.predict(dict(inputs), [noise_generator(SEED, seen.seed, seen.step)])
        return self.processor.decode_actions(actions.cpu(), state=seen.state[None])
