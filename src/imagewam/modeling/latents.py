"""Latents of diffusers' VAEs: their normalisation, and patches of them as tokens."""

from torch import Tensor, nn


def channel_statistics(vae: nn.Module, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel that a VAE's config names, `[1, C, 1, ..]` in the form of `latents`."""
    shape = 1, -1, *[1] * (latents.ndim - 2)
    statistics = vae.config.latents_mean, vae.config.latents_std
    mean, std = (latents.new_tensor(values).view(shape) for values in statistics)
    return mean, std


def to_tokens(latents: Tensor, patch: int) -> Tensor:
    """`[B, C, F, H, W]` -> `[B, F · H/patch · W/patch, C · patch²]`."""
    latents = latents.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return latents.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def to_latents(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Inverse of `to_tokens`; `grid` is (rows, columns) of one frame."""
    latents = tokens.unflatten(1, (-1, *grid)).unflatten(-1, (-1, patch, patch))
    return latents.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
