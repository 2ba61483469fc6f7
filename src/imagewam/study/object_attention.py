"""How much of the actions' attention lies on what the task is about, against how much of the picture that fills.

The measure behind the paper's Figure 4, with masks from the simulator instead of the eye.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..evaluation.env_worker import EnvWorker
from ..evaluation.environment import Observation
from ..evaluation.policy_predictor import PolicyPredictor
from ..pipelines.attention_maps import attention_maps, mean_attention

Masks = dict[str, np.ndarray]  # camera -> bool [H, W]


@dataclass(frozen=True)
class Moment:
    """Attention at one moment of an expert's episode. Shares are of all attention on image tokens, of all pixels."""

    task: str
    seed: int
    step: int
    attention_share: float
    area_share: float


def watched_moments(
    worker: EnvWorker, task: str, seed: int, every: int, step_limit: int
) -> Iterator[tuple[Observation, Masks]]:
    """Every so many steps of an expert's episode what the cameras see, and where in it the object is."""
    seen = worker.reset(task, seed)
    for step in range(step_limit):
        if step % every == 0:
            yield seen, worker.call("object_masks")
        result = worker.step(worker.expert_action()[None])
        if result.success:
            return
        seen = result.observation


def object_attention(predictor: PolicyPredictor, moments: Sequence[tuple[Observation, Masks]]) -> list[Moment]:
    """Where the actions look that the policy plans at these moments, averaged over steps, layers, heads, actions."""
    layout = predictor.processor.layout
    output = predictor.predict([seen for seen, _ in moments], output_attentions=True)
    maps = attention_maps(mean_attention(output.attentions), output.context_spans["image"], output.image_grid, layout)
    return [
        Moment(seen.task, seen.seed, seen.step, *_shares(views, {c.name: masks[c.name] for c in layout.cameras}))
        for (seen, masks), views in zip(moments, maps, strict=True)
    ]


def summary(moments: Sequence[Moment]) -> dict[str, Any]:
    """Means over the moments at which the object is in sight, and every moment.

    Raises:
        ValueError: it never is.
    """
    seen = [moment for moment in moments if moment.area_share > 0]
    if not seen:
        raise ValueError(f"the object is in sight at none of {len(moments)} moments")
    attention, area = (float(np.mean([getattr(m, name) for m in seen])) for name in ("attention_share", "area_share"))
    return {
        "attention_share": attention,
        "area_share": area,
        "ratio": attention / area,
        "moments": [asdict(moment) for moment in moments],
    }


def _shares(views: Masks, masks: Masks) -> tuple[float, float]:
    total = sum(float(heat.sum()) for heat in views.values())
    on_object = sum(float((heat * _coverage(masks[name], heat.shape)).sum()) for name, heat in views.items())
    tokens = sum(heat.size for heat in views.values())
    area = sum(float(_coverage(masks[name], heat.shape).sum()) for name, heat in views.items())
    return on_object / total, area / tokens


def _coverage(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The part of every token's square that the mask fills, [rows, columns].

    Raises:
        ValueError: the mask has no whole number of pixels per token.
    """
    (height, width), (rows, columns) = mask.shape, grid
    if height % rows or width % columns:
        raise ValueError(f"a mask of {height} x {width} pixels does not divide into {rows} x {columns} tokens")
    return mask.reshape(rows, height // rows, columns, width // columns).mean(axis=(1, 3))
