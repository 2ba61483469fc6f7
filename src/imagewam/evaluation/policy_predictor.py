"""A policy and its processor as the `Predict` function of rollouts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature

from imagewam.evaluation.environment import Observation


class PolicyPredictor:
    """Observations in, action chunks in physical units out.

    The initial noise of every chunk is drawn from (seed, episode seed, step), so an episode goes the same way
    whichever episodes happen to share its batch.
    """

    def __init__(self, policy: Any, processor: Any, num_inference_steps: int | None = None, seed: int = 0):
        self.policy = policy.eval()
        self.processor = processor
        self.num_inference_steps = num_inference_steps or policy.config.num_inference_steps
        self.seed = seed

    def __call__(self, observations: list[Observation]) -> np.ndarray:
        """Action chunks [B, horizon, action_dim]."""
        state = np.stack([seen.state for seen in observations])
        return self.processor.decode_actions(self.predict(observations).actions.float().cpu(), state=state)

    @torch.inference_mode()
    def predict(self, observations: Sequence[Observation], **options: Any) -> Any:
        """The policy's full output; `options` go to `predict_action`."""
        inputs = self.inputs(observations)
        steps = self.num_inference_steps
        return self.policy.predict_action(
            **inputs, latents=self.noise(observations), num_inference_steps=steps, **options
        )

    def inputs(self, observations: Sequence[Observation]) -> BatchFeature:
        """The observations as a batch on the policy's device."""
        inputs = self.processor(
            images=[seen.images for seen in observations],
            instruction=[seen.instruction for seen in observations],
            state=np.stack([seen.state for seen in observations]),
            return_tensors="pt",
        )
        return inputs.to(self.policy.device)

    def noise(self, observations: Sequence[Observation]) -> torch.Tensor:
        """Initial action noise [B, horizon, action_dim]."""
        config = self.policy.config
        shape = (config.action_horizon, config.action_dim)
        draws = [
            np.random.default_rng((self.seed, seen.seed, seen.step)).standard_normal(shape) for seen in observations
        ]
        return torch.from_numpy(np.stack(draws)).to(self.policy.device, self.policy.dtype)
