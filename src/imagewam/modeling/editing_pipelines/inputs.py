"""What the caller of an editing pipeline gives, checked and made complete."""

from collections.abc import Iterable, Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor


def check_num_steps(num_inference_steps: int) -> None:
    """
    Raises:
        ValueError: there is no step to take.
    """
    if num_inference_steps < 1:
        raise ValueError(f"expected num_inference_steps of at least 1, got {num_inference_steps}")


def check_images(images: Iterable[Image.Image]) -> None:
    """
    Raises:
        ValueError: one of them is no PIL image.
    """
    for image in images:
        if not isinstance(image, Image.Image):
            raise ValueError(f"expected PIL images, got {type(image).__name__}")


def named_size(height: int | None, width: int | None, multiple: int) -> tuple[int, int] | None:
    """(height, width) as the caller wants them, in pixels; None where the caller leaves them open.

    Raises:
        ValueError: only one of them is named, or one is no multiple of `multiple`.
    """
    if (height is None) != (width is None):
        raise ValueError(f"height and width belong together, got height {height} and width {width}")
    if height is None:
        return None
    if min(height, width) < multiple or height % multiple or width % multiple:
        raise ValueError(f"expected a height and a width that are multiples of {multiple}, got {height} x {width}")
    return height, width


def initial_latents(
    latents: Tensor | None,
    shape: tuple[int, int, int, int],
    device: torch.device,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Tensor:
    """Noise to start from, float32: the caller's latents, or drawn from `generator`.

    Raises:
        ValueError: the caller's latents have another shape.
    """
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    if latents.shape != shape:
        raise ValueError(f"expected latents of shape {shape}, got {tuple(latents.shape)}")
    return latents.to(device, torch.float32)
