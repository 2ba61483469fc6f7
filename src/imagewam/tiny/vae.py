"""Teach a tiny FLUX.2 VAE to code the pictures of one dataset."""

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from torch import Tensor
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

_KL_WEIGHT = 1e-4
# How much more a pixel counts that is as far from its mean as black from grey: what moves or changes its colour is
# what robots act on, and small beside the background.
_EMPHASIS = 4.0


def fit_vae(
    vae: AutoencoderKLFlux2,
    images: Tensor,
    *,
    steps: int,
    batch_size: int = 16,
    crop: int = 48,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> float:
    """Train `vae` in place to reproduce `images`, then measure the latent statistics that FLUX.2 normalises with.

    Args:
        images: uint8 `[N, H, W, 3]` canvases, H and W multiples of the VAE's token size. Pixels that differ from the
            mean canvas weigh more than those that never change.
        steps: optimiser steps; the learning rate rises over a twentieth of them and falls to zero along a cosine.
        crop: side of the random squares that it trains on: it is convolutional, so whole pictures only cost more.

    Returns:
        root mean squared error of the reconstruction over the last tenth of the steps, in grey levels of 255.

    Raises:
        ValueError: the canvases are not whole tokens high and wide.
    """
    multiple, (height, width) = 2 ** len(vae.config.block_out_channels), images.shape[1:3]
    if height % multiple or width % multiple:
        raise ValueError(f"canvas height and width must be multiples of {multiple}, got {height} x {width}")
    generator = torch.Generator().manual_seed(seed)
    mean = images.float().mean(dim=0)
    optimizer = torch.optim.Adam(vae.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    vae.requires_grad_(True).train()
    errors = []
    for _ in tqdm(range(steps), desc="fitting the VAE", unit="step"):
        squares = _random_squares(images, batch_size, crop, generator)
        pixels = _pixels(torch.stack([images[index][square] for index, square in squares]), vae)
        typical = _pixels(torch.stack([mean[square] for _, square in squares]), vae)
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        difference = vae.decode(latents).sample - pixels
        weight = 1 + _EMPHASIS * (pixels - typical).abs().mean(dim=1, keepdim=True)
        # L1 beside L2: small objects must not drown in the background's average.
        loss = (weight * (difference.square() + difference.abs())).mean()
        loss = loss + _KL_WEIGHT * posterior.kl().mean() / latents[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        errors.append(difference.detach().square().mean().item())
    vae.requires_grad_(False).eval()
    measure_latents(vae, images)
    last = errors[-max(1, steps // 10) :]
    return (sum(last) / len(last)) ** 0.5 * 127.5


@torch.no_grad()
def measure_latents(vae: AutoencoderKLFlux2, images: Tensor, batch_size: int = 64) -> None:
    """Set the VAE's batch-norm statistics to mean and variance of its patchified latents over at most 512 images."""
    images = images[:: max(1, len(images) // 512)]
    latents = torch.cat(
        [
            Flux2KleinPipeline._patchify_latents(vae.encode(_pixels(batch, vae)).latent_dist.mode())
            for batch in images.split(batch_size)
        ]
    )
    vae.bn.running_mean.copy_(latents.mean(dim=(0, 2, 3)))
    vae.bn.running_var.copy_(latents.var(dim=(0, 2, 3)))


def _random_squares(
    images: Tensor, number: int, size: int, generator: torch.Generator
) -> list[tuple[int, tuple[slice, slice]]]:
    """(image, (rows, columns)) of random squares, or of whole sides where an image is shorter."""
    lengths = [min(size, side) for side in images.shape[1:3]]
    drawn = torch.randint(len(images), (number,), generator=generator).tolist()
    starts = [
        torch.randint(side - length + 1, (number,), generator=generator).tolist()
        for side, length in zip(images.shape[1:3], lengths, strict=True)
    ]
    squares = [
        tuple(slice(start, start + length) for start, length in zip(place, lengths, strict=True))
        for place in zip(*starts, strict=True)
    ]
    return list(zip(drawn, squares, strict=True))


def _pixels(images: Tensor, vae: AutoencoderKLFlux2) -> Tensor:
    """`[B, H, W, 3]` in 0..255 -> `[B, 3, H, W]` in [-1, 1]."""
    return (images.permute(0, 3, 1, 2) / 127.5 - 1).to(vae.dtype)
