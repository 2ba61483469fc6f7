"""A policy and its processor as the `Predict` function of rollouts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature

from ..inference.noise import noise_generator
from .environment import EnvironmentSpec, Observation
from .environment_contract import check_environment


class PolicyPredictor:
    """Observations in, action chunks in physical units out.

    The noise of every chunk is drawn from (seed, episode seed, step), so an episode goes the same way whichever
    episodes happen to share its batch.
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

    def check_environment(self, spec: EnvironmentSpec) -> None:
        """Raise ContractMismatchError, naming both sides, unless the policy was trained for such an environment."""
        check_environment(self.processor.contract, spec)

    @torch.inference_mode()
    def predict(self, observations: Sequence[Observation], **options: Any) -> Any:
        """The policy's full output; `options` go to `predict_action`."""
        inputs = self.inputs(
            images=[seen.images for seen in observations],
            instruction=[seen.instruction for seen in observations],
            state=np.stack([seen.state for seen in observations]),
        )
        return self.policy.predict_action(
            **inputs,
            num_inference_steps=self.num_inference_steps,
            generator=self.generators(observations),
            **options,
        )

    def inputs(self, **observation: Any) -> BatchFeature:
        """What the processor makes of images, instruction and state, on the policy's device."""
        return self.processor(**observation, return_tensors="pt").to(self.policy.device)

    def generators(self, observations: Sequence[Observation]) -> list[torch.Generator]:
        """One source of noise per observation."""
        return [noise_generator(self.seed, seen.seed, seen.step) for seen in observations]
