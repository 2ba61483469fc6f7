"""Where the actions look: attention from action tokens to context tokens, as heat maps over the camera images.

Attention weights come from `policy.predict_action(..., output_attentions=True)`: one tuple per Euler step, in it one
tensor [B, heads, horizon, context tokens] per layer.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from ..processing.camera_layout import CameraLayout

Attentions = Sequence[Sequence[torch.Tensor]]

EVERYTHING = slice(None)
# A dark-to-bright ramp (black, violet, orange, pale yellow) that also reads in grey.
RAMP_STOPS = (0.0, 0.35, 0.7, 1.0)
RAMP = ((0, 0, 4), (120, 28, 109), (237, 105, 37), (252, 255, 164))


def mean_attention(
    attentions: Attentions,
    *,
    steps: slice = EVERYTHING,
    layers: slice = EVERYTHING,
    heads: slice = EVERYTHING,
    actions: slice = EVERYTHING,
) -> torch.Tensor:
    """Mean over the chosen Euler steps, layers, heads and actions of the chunk: float32 [B, context tokens]."""
    chosen = [
        weights[:, heads, actions].float().mean(dim=(1, 2)) for step in attentions[steps] for weights in step[layers]
    ]
    return torch.stack(chosen).mean(dim=0)


def attention_shares(attention: torch.Tensor, spans: Mapping[str, slice]) -> list[dict[str, float]]:
    """How much of the attention [B, context tokens] falls on each span of the context, per sample."""
    return [{name: row[span].sum().item() for name, span in spans.items()} for row in attention]


def attention_maps(
    attention: torch.Tensor, image_span: slice, image_grid: tuple[int, int], layout: CameraLayout
) -> list[dict[str, np.ndarray]]:
    """Cut attention over the canvas into one map per camera.

    Args:
        attention: [B, context tokens], of `mean_attention`.
        image_span: which of the context tokens are image tokens.
        image_grid: (h, w) of the image tokens over the canvas.
        layout: of the processor's contract.

    Returns:
        per sample, camera name -> float32 [rows, columns] in tokens.

    Raises:
        ValueError: the span does not hold h · w tokens, or a token straddles two cameras.
    """
    tokens = attention[:, image_span].float().cpu().numpy()
    if tokens.shape[1] != image_grid[0] * image_grid[1]:
        raise ValueError(f"the image span holds {tokens.shape[1]} tokens, a grid of {image_grid} needs h x w of them")
    regions = layout.camera_regions(image_grid)
    return [{name: grid[rows] for name, rows in regions.items()} for grid in tokens.reshape(-1, *image_grid)]


def overlay(image: np.ndarray, heat: np.ndarray, top: float | None = None, floor: float = 0.0) -> np.ndarray:
    """Lay a heat map of any size over an image.

    Args:
        image: uint8 [H, W, 3].
        heat: float [h, w], not negative.
        top: the value shown brightest; default the map's own maximum. Give all maps of a series the same one.
        floor: values up to here leave the image alone; the mean shows only what draws more attention than most.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    fine = Image.fromarray(np.asarray(heat, dtype=np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    reach = (heat.max() if top is None else top) - floor
    level = np.clip((np.asarray(fine) - floor) / max(reach, 1e-12), 0, 1)[..., None]
    colour = np.concatenate([np.interp(level, RAMP_STOPS, channel) for channel in zip(*RAMP, strict=True)], axis=-1)
    grey = image.mean(axis=-1, keepdims=True)
    opacity = 0.7 * level
    return np.round((1 - opacity) * (0.5 * image + 0.4 * grey) + opacity * colour).astype(np.uint8)
