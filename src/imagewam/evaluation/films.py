"""Films of evaluated episodes: the scene, beside it what the policy saw, and on request what it foresaw."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ..atomic import atomic_file
from .policy_predictor import PolicyPredictor
from .rollout import EpisodeRecord, Trace


def write_film(
    path: str | Path, trace: Trace, record: EpisodeRecord, predictor: PolicyPredictor | None, fps: int
) -> None:
    """Write one H.264 frame per action.

    Args:
        record: success frames the last second in green, failure in red.
        predictor: draws the canvas that it foresees at every plan below what it saw; None: not asked for.
    """
    panels = [_panel(trace, plan, predictor) for plan in range(len(trace.observations))]
    starts = [seen.step for seen in trace.observations]
    plans = np.searchsorted(starts, range(len(trace.film)), side="right") - 1
    frames = [_beside(scene, panels[plan]) for scene, plan in zip(trace.film, plans, strict=True)]
    frames += [_framed(frames[-1], (40, 170, 70) if record.success else (200, 60, 50))] * fps
    write_video(path, frames, fps)


def write_video(path: str | Path, frames: list[np.ndarray], fps: int) -> None:
    """Write uint8 [H, W, 3] frames (even H and W) as H.264, all or nothing."""
    height, width = frames[0].shape[:2]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=Fraction(fps), options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _panel(trace: Trace, plan: int, predictor: PolicyPredictor | None) -> list[np.ndarray]:
    seen = trace.observations[plan]
    if predictor is None:
        return list(seen.images.values())
    return [predictor.processor.layout.compose(seen.images), predictor.foresee(seen)]


def _beside(scene: np.ndarray, panel: list[np.ndarray]) -> np.ndarray:
    """The scene on the left, the pictures of the panel under each other on the right, as high as the scene."""
    height = scene.shape[0] // 2 * 2
    rows = height // len(panel)
    width = max(picture.shape[1] * rows // picture.shape[0] for picture in panel) // 2 * 2
    column = np.zeros((height, width, 3), np.uint8)
    for index, picture in enumerate(panel):
        own_width = min(width, picture.shape[1] * rows // picture.shape[0])
        resized = Image.fromarray(picture).resize((own_width, rows), Image.Resampling.BICUBIC)
        column[index * rows : (index + 1) * rows, :own_width] = np.asarray(resized)
    return np.concatenate([scene[:height, : scene.shape[1] // 2 * 2], column], axis=1)


def _framed(frame: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    framed = np.empty_like(frame)
    framed[:] = colour
    framed[4:-4, 4:-4] = frame[4:-4, 4:-4]
    return framed
