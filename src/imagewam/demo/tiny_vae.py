"""Teach a tiny FLUX.2 VAE to code the pictures of one dataset."""

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

_KL_WEIGHT = 1e-4


def fit_vae(
    vae: AutoencoderKLFlux2,
    images: Tensor,
    *,
    steps: int,
    batch_size: int = 32,
    crop: int = 32,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> float:
    """Train `vae` in place to reproduce `images`, then measure the latent statistics that FLUX.2 normalises with.

    Args:
        images: uint8 `[N, H, W, 3]` canvases, H and W multiples of the VAE's token size.
        steps: optimiser steps; the learning rate falls to zero along a cosine.
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
    optimizer = torch.optim.Adam(vae.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    vae.requires_grad_(True).train()
    errors = []
    for _ in tqdm(range(steps), desc="fitting the VAE", unit="step"):
        pixels = _pixels(_random_crops(images, batch_size, crop, generator), vae)
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(latents).sample
        error = F.mse_loss(decoded, pixels)
        # L1 beside L2: small objects must not drown in the background's average.
        loss = error + F.l1_loss(decoded, pixels) + _KL_WEIGHT * posterior.kl().mean() / latents[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        errors.append(error.item())
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


def _random_crops(images: Tensor, number: int, size: int, generator: torch.Generator) -> Tensor:
    """`[number, size, size, 3]` squares of random images, or whole sides where an image is shorter."""
    height, width = (min(size, side) for side in images.shape[1:3])
    crops = []
    for index in torch.randint(len(images), (number,), generator=generator):
        top = torch.randint(images.shape[1] - height + 1, (), generator=generator)
        left = torch.randint(images.shape[2] - width + 1, (), generator=generator)
        crops.append(images[index, top : top + height, left : left + width])
    return torch.stack(crops)


def _pixels(images: Tensor, vae: AutoencoderKLFlux2) -> Tensor:
    """uint8 `[B, H, W, 3]` -> `[B, 3, H, W]` in [-1, 1]."""
    return (images.permute(0, 3, 1, 2) / 127.5 - 1).to(vae.dtype)
