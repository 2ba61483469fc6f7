"""Films of episodes: the scene beside what the policy saw and where its actions looked."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..evaluation.rollout import Trace

CAPTION_HEIGHT = 32
CAPTION_COLOURS = {True: (120, 220, 140), False: (240, 130, 110)}


def film_frames(trace: Trace, views: Sequence[Sequence[np.ndarray]], caption: str, success: bool) -> list[np.ndarray]:
    """One frame per action: the scene on the left, the views of the last plan stacked on the right, the caption below.

    Args:
        trace: of one episode; its film frames are uint8 [S, S, 3].
        views: per plan of the trace, the pictures to stack, uint8 [h, w, 3] each.
        caption: what the policy was told.
        success: colours the last frame's caption.
    """
    plan_steps = [seen.step for seen in trace.observations]
    plans = np.searchsorted(plan_steps, range(len(trace.film)), side="right") - 1
    frames = [_beside(scene, views[plan]) for scene, plan in zip(trace.film, plans, strict=True)]
    frames = [_captioned(frame, caption, (230, 230, 230)) for frame in frames]
    ending = _captioned(_beside(trace.film[-1], views[-1]), caption, CAPTION_COLOURS[success])
    return frames + [ending] * 20  # hold the end, so that a viewer sees it


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3], bicubic."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _beside(scene: np.ndarray, views: Sequence[np.ndarray]) -> np.ndarray:
    side = scene.shape[0] // len(views)
    column = np.concatenate([resized(view, side, side) for view in views])
    return np.concatenate([scene[: len(column)], column], axis=1)


def _captioned(frame: np.ndarray, caption: str, colour: tuple[int, int, int]) -> np.ndarray:
    bar = Image.new("RGB", (frame.shape[1], CAPTION_HEIGHT), (24, 24, 28))
    font = ImageFont.load_default(size=16)
    ImageDraw.Draw(bar).text((12, CAPTION_HEIGHT // 2), caption, fill=colour, font=font, anchor="lm")
    return np.concatenate([frame, np.asarray(bar)])
