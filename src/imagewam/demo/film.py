"""Films of episodes: the scene, beside it what the policy saw with where its actions looked, and what it foresaw."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..evaluation.rollout import Trace

CAPTION_HEIGHT = 32
INK = (230, 230, 230)
ENDING_INKS = {True: (120, 220, 140), False: (240, 130, 110)}
ENDING_FRAMES = 20  # hold the end, so that a viewer sees it

Views = Sequence[Sequence[np.ndarray]]


def film_frames(trace: Trace, views: Sequence[Views], captions: Sequence[str], success: bool) -> list[np.ndarray]:
    """One frame per action: the scene on the left, the views of the last plan on the right, its caption below.

    Args:
        trace: of one episode; its film frames are uint8 [S, S, 3].
        views: per plan of the trace a table of pictures, rows of columns, uint8 [h, w, 3] each.
        captions: per plan, what the policy was told.
        success: colours the last frame's caption.
    """
    plan_steps = [seen.step for seen in trace.observations]
    plans = np.searchsorted(plan_steps, range(len(trace.film)), side="right") - 1
    frames = [
        _captioned(_beside(scene, views[plan]), captions[plan], INK)
        for scene, plan in zip(trace.film, plans, strict=True)
    ]
    ending = _captioned(_beside(trace.film[-1], views[-1]), captions[-1], ENDING_INKS[success])
    return frames + [ending] * ENDING_FRAMES


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3], bicubic."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _beside(scene: np.ndarray, views: Views) -> np.ndarray:
    side = scene.shape[0] // len(views)
    table = np.concatenate([np.concatenate([resized(view, side, side) for view in row], axis=1) for row in views])
    return np.concatenate([scene[: len(table)], table], axis=1)


def _captioned(frame: np.ndarray, caption: str, colour: tuple[int, int, int]) -> np.ndarray:
    bar = Image.new("RGB", (frame.shape[1], CAPTION_HEIGHT), (24, 24, 28))
    font = ImageFont.load_default(size=16)
    ImageDraw.Draw(bar).text((12, CAPTION_HEIGHT // 2), caption, fill=colour, font=font, anchor="lm")
    return np.concatenate([frame, np.asarray(bar)])
