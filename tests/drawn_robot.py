"""A drawn robot: a policy for it that nobody has trained, and an episode."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from imagewam import ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.data.writer import LeRobotWriter
from imagewam.processing.camera_layout import CameraSpec
from imagewam.processing.contract import ActionSpec, PolicyContract, StateSpec
from imagewam.processing.normalization import identity_statistics
from imagewam.tiny.pipeline import build_tiny_pipeline

INSTRUCTION = "push the red block to the right"
STATE_NAMES, ACTION_NAMES = ("x", "y", "gripper"), ("dx", "dy", "gripper")
SIZE, HORIZON, LENGTH, FPS = 64, 16, 48, 10


def save_untrained_policy(folder: str | Path) -> None:
    """Policy and processor in one checkpoint folder."""
    for part in untrained_parts():
        part.save_pretrained(folder, save_frozen=True)


def untrained_parts(seed: int = 0) -> tuple[ImageWAMForActionPrediction, ImageWAMProcessor]:
    """Policy and processor of two cameras, three numbers of state and three of action."""
    contract = PolicyContract(
        cameras=tuple(CameraSpec(name, SIZE, SIZE) for name in ("scene", "wrist")),
        layout="horizontal",
        state=StateSpec(STATE_NAMES),
        action=ActionSpec(ACTION_NAMES, units=("m", "m", "0..1"), gripper="0 closes, 1 opens"),
        fps=FPS,
        horizon=HORIZON,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = ImageWAMForActionPrediction.from_editing_pipeline(
            build_tiny_pipeline([INSTRUCTION], seed=seed),
            action_dim=len(ACTION_NAMES),
            state_dim=len(STATE_NAMES),
            action_horizon=HORIZON,
            action_hidden_size=128,
        )
    statistics = identity_statistics(len(STATE_NAMES), len(ACTION_NAMES))
    return policy.eval(), ImageWAMProcessor.for_policy(policy, contract, statistics)


def write_drawn_episode(root: str | Path) -> None:
    """A drawn episode as a LeRobot dataset: a gripper comes down beside a red block and pushes it to the right."""
    camera = {"dtype": "image", "shape": [SIZE * 2, SIZE * 2, 3], "names": ["height", "width", "channels"]}
    features = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": list(STATE_NAMES)},
        "action": {"dtype": "float32", "shape": [3], "names": list(ACTION_NAMES)},
        "observation.images.scene": camera,
        "observation.images.wrist": camera,
    }
    down = np.clip(np.arange(LENGTH + 1) / 16, 0, 1)
    right = np.clip((np.arange(LENGTH + 1) - 16) / 28, 0, 1)
    states = np.stack([-0.5 + right, 0.6 - 0.7 * down, 1 - down], axis=1).astype(np.float32)
    blocks = np.maximum(states[:, 0] + 0.2, -0.3)
    actions = np.concatenate([np.diff(states[:, :2], axis=0), states[1:, 2:]], axis=1)
    pairs = list(zip(states[:-1], blocks, strict=False))
    with LeRobotWriter(root, fps=FPS, features=features) as writer:
        writer.add_episode(
            {
                "observation.state": states[:-1],
                "action": actions,
                "observation.images.scene": np.stack([_scene(state, block) for state, block in pairs]),
                "observation.images.wrist": np.stack([_wrist(state, block) for state, block in pairs]),
            },
            task=INSTRUCTION,
        )


def _scene(state: np.ndarray, block: float) -> np.ndarray:
    """The table from the front; x goes to the right, y up, both in [-1, 1]."""
    return _drawn([_box(block, -0.25, 0.13, (206, 62, 52)), *_fingers(state[0], state[1], state[2])], horizon=0.1)


def _wrist(state: np.ndarray, block: float) -> np.ndarray:
    """The same from the gripper: the block moves, the fingers stay."""
    near = 1.6
    x, y = (block - state[0]) * near, (-0.25 - state[1]) * near + 0.3
    return _drawn([_box(x, y, 0.24, (206, 62, 52)), *_fingers(0.0, 0.55, state[2])], horizon=0.9)


def _box(x: float, y: float, half: float, colour: tuple[int, int, int]) -> tuple:
    return (x - half, y - half, x + half, y + half), colour


def _fingers(x: float, y: float, opening: float) -> list[tuple]:
    gap, steel = 0.05 + 0.08 * opening, (58, 64, 74)
    sides = [((x + side * gap - 0.03, y - 0.12, x + side * gap + 0.03, y + 0.12), steel) for side in (-1, 1)]
    return [*sides, ((x - 0.18, y + 0.12, x + 0.18, y + 0.2), steel), ((x - 0.05, y + 0.2, x + 0.05, 1.2), steel)]


def _drawn(boxes: list[tuple], horizon: float) -> np.ndarray:
    """Drawn at four times the size and reduced: edges that move by less than a pixel show it."""
    size = SIZE * 8
    picture = Image.new("RGB", (size, size), (196, 204, 210))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, (1 - horizon) / 2 * size, size, size), fill=(168, 134, 98))
    for (left, bottom, right, top), colour in boxes:
        corners = [(left + 1) / 2, (1 - top) / 2, (right + 1) / 2, (1 - bottom) / 2]
        draw.rectangle([corner * size for corner in corners], fill=colour)
    return np.asarray(picture.resize((SIZE * 2, SIZE * 2), Image.Resampling.BOX))
