"""Images as Pillow has them, whole numbers 0..255, resized as Pillow resizes: for text encoders that see the image."""

from torch import Tensor
from torch.nn import functional


def to_levels(pixel_values: Tensor) -> Tensor:
    """`[B, C, H, W]` in [-1, 1] -> whole numbers 0..255, float32."""
    return ((pixel_values.float() + 1) * 127.5).round().clamp(0, 255)


def resize_levels(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic resize of whole numbers 0..255, `[B, C, H, W]` float, as Pillow does it: one axis after the other, the
    width first, rounded to whole numbers (halves up) after each. (Pillow 13 takes the height first for some sizes.)"""
    for shape in ((levels.shape[-2], size[1]), size):
        if levels.shape[-2:] != shape:
            resized = functional.interpolate(levels, shape, mode="bicubic", antialias=True)
            levels = (resized + 0.5).floor().clamp(0, 255)
    return levels
