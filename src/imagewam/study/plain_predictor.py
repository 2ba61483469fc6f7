"""A policy without an editing model as the `Predict` function of rollouts."""

import numpy as np
import torch

from ..evaluation.environment import Observation
from ..inference.noise import noise_generator
from ..processing_imagewam import ImageWAMProcessor
from .plain_policies import PlainPolicy


class PlainPredictor:
    """Observations in, action chunks in physical units out; noise as `PolicyPredictor` draws it."""

    def __init__(self, policy: PlainPolicy, processor: ImageWAMProcessor, seed: int = 0):
        self.policy, self.processor, self.seed = policy.eval(), processor, seed

    @torch.inference_mode()
    def __call__(self, observations: list[Observation]) -> np.ndarray:
        """Action chunks [B, horizon, action_dim]."""
        state = np.stack([seen.state for seen in observations])
        inputs = self.processor(
            images=[seen.images for seen in observations],
            instruction=[seen.instruction for seen in observations],
            state=state,
            return_tensors="pt",
        )
        generators = [noise_generator(self.seed, seen.seed, seen.step) for seen in observations]
        return self.processor.decode_actions(self.policy.predict(dict(inputs), generators), state=state)
