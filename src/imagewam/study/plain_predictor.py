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

    @torch.inference_mode()
    def __call__(self, observations: list[Observation]) -> np.ndarray:
        """Action chunks [B, horizon, action_dim]."""
        state = np.stack([seen.state for seen in observations])
        inputs = self.processor(
            images=[seen.images for seen in observations],
            instruction=[seen.instruction for seen in observations],
            state=state,
            return_tensors="pt",
        ).to(next(self.policy.parameters()).device)
        generators = [noise_generator(SEED, seen.seed, seen.step) for seen in observations]
        return self.processor.decode_actions(self.policy.predict(dict(inputs), generators).cpu(), state=state)
