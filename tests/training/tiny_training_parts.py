"""A tiny policy, its processor and an in-memory dataset."""

from functools import cache

import numpy as np
import torch

from imagewam import ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.processing.camera_layout import CameraSpec
from imagewam.processing.contract import ActionSpec, PolicyContract, StateSpec
from imagewam.tiny.pipeline import build_tiny_pipeline
from tiny_families import FAMILIES

HORIZON, STATE_NAMES, ACTION_NAMES = 4, ("a", "b", "c"), ("a", "b")
SCALE = 10.0  # one normalised unit, in physical units
INSTRUCTION = "push the cube"


def tiny_policy(
    seed: int = 0, action_dim: int = len(ACTION_NAMES), family: str | None = None, **config
) -> ImageWAMForActionPrediction:
    """On a pipeline of the family; without one on a smaller FLUX.2, for tests that families mean nothing to."""
    torch.manual_seed(seed)
    sizes = {"heads": 2, "head_dim": 16, "num_layers": 1, "num_single_layers": 1, "text_width": 16}
    if family is None:
        pipeline = build_tiny_pipeline([INSTRUCTION], **sizes, vae_channels=(8, 16))
    else:
        pipeline = FAMILIES[family].pipeline([INSTRUCTION])
    return ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline,
        action_dim=action_dim,
        state_dim=len(STATE_NAMES),
        action_horizon=HORIZON,
        action_hidden_size=16,
        num_inference_steps=2,
        **config,
    )


@cache
def statistics() -> dict:
    def unit(size: int) -> dict:
        return {"mean": [0.0] * size, "std": [SCALE] * size}

    return {"state": unit(len(STATE_NAMES)), "action": unit(len(ACTION_NAMES))}


def tiny_processor(policy: ImageWAMForActionPrediction, size: int = 8) -> ImageWAMProcessor:
    contract = PolicyContract(
        cameras=(CameraSpec("front", size, size),),
        layout="single",
        state=StateSpec(STATE_NAMES, "mean_std"),
        action=ActionSpec(ACTION_NAMES, "mean_std"),
        fps=10,
        horizon=HORIZON,
    )
    return ImageWAMProcessor.for_policy(policy, contract=contract, statistics=statistics())


class TinyDataset(torch.utils.data.Dataset):
    """Actions that repeat the state; every other chunk ends one step early."""

    def __init__(
        self, size: int = 16, seed: int = 0, horizon: int = HORIZON, camera: str = "front", padded: bool = True
    ):
        generator = np.random.default_rng(seed)
        self.states = (generator.normal(size=(size, len(STATE_NAMES))) * SCALE).astype(np.float32)
        self.images = generator.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8)
        self.horizon, self.camera, self.padded = horizon, camera, padded

    def __len__(self):
        return len(self.states)

    def __getitem__(self, index):
        return {
            "images": {self.camera: self.images[index]},
            "target_images": {self.camera: self.images[index - 1]},
            "state": self.states[index],
            "actions": np.repeat(self.states[index, None, : len(ACTION_NAMES)], self.horizon, axis=0),
            "action_is_pad": np.arange(self.horizon) >= self.horizon - index % 2 * self.padded,
            "instruction": INSTRUCTION,
        }
