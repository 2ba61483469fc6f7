"""A recording of six short episodes, three of each task: a grey ball moves over a coloured ground."""

from pathlib import Path

import numpy as np

from imagewam.data.writer import LeRobotWriter

SIZE = 32
CAMERAS = ("corner2", "gripperPOV")


def record_ball(root: Path) -> None:
    """Write it, with 32-pixel videos of both cameras."""
    camera = {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
    features = {f"observation.images.{name}": camera for name in CAMERAS}
    for key in ("observation.state", "action"):
        features[key] = {"dtype": "float32", "shape": (4,), "names": [f"{key}_{i}" for i in range(4)]}
    random = np.random.default_rng(0)
    with LeRobotWriter(root, fps=80, features=features) as writer:
        for episode in range(6):
            frames = {key: random.uniform(-1, 1, (9, 4)) for key in ("observation.state", "action")}
            for name in CAMERAS:
                frames[f"observation.images.{name}"] = np.stack([ball(step, episode) for step in range(9)])
            writer.add_episode(frames, task="turn the faucet on" if episode < 3 else "turn the faucet off")


def ball(step: int, episode: int) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    frame = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    frame[:] = (40 + 20 * episode, 90, 60)
    frame[(rows - 16) ** 2 + (columns - 4 - 3 * step) ** 2 < 25] = 200
    return frame
