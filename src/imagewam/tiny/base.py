"""The editing pipeline that a tiny policy starts from: FLUX.2 in small, fitted to frames and words of a dataset."""

from collections.abc import Iterable

import numpy as np
import torch
from diffusers import Flux2KleinPipeline

from ..data.lerobot_dataset import LeRobotDataset
from ..processing.camera_layout import CameraLayout
from ..processing.contract import PolicyContract
from .pipeline import build_tiny_pipeline
from .text_encoder import fit_text_encoder
from .vae import fit_vae

MOST_CANVASES = 2048


def fitted_tiny_pipeline(
    dataset: LeRobotDataset,
    contract: PolicyContract,
    vae_steps: int,
    seed: int,
    *,
    text_steps: int = 0,
    texts: Iterable[str] = (),
    **sizes: int | tuple[int, ...],
) -> Flux2KleinPipeline:
    """The same for the same arguments: the transformer random, VAE and text encoder trained.

    Args:
        text_steps: of the text encoder; it stays random without any.
        texts: sentences that it learns beside the dataset's instructions.
        sizes: of `build_tiny_pipeline`.
    """
    texts = list(dict.fromkeys([*dataset.tasks.values(), *texts]))
    pipeline = build_tiny_pipeline(texts, seed=seed, **sizes)
    if text_steps:
        fit_text_encoder(pipeline.text_encoder, pipeline.tokenizer, texts, steps=text_steps, seed=seed)
    fit_vae(pipeline.vae, torch.from_numpy(canvases(dataset, contract)), steps=vae_steps, seed=seed)
    return pipeline


def canvases(dataset: LeRobotDataset, contract: PolicyContract) -> np.ndarray:
    """Evenly spaced frames of all episodes as the policy sees them, uint8 [N, H, W, 3], N about `MOST_CANVASES`."""
    layout = CameraLayout(contract.cameras, contract.layout)
    stride = -(-len(dataset) // MOST_CANVASES)
    composed = []
    for episode, length in dataset.episode_lengths.items():
        steps = range(0, length, stride)
        views = {camera.name: dataset.frames(camera.name, episode, steps) for camera in contract.cameras}
        composed += [layout.compose({name: frames[i] for name, frames in views.items()}) for i in range(len(steps))]
    return np.stack(composed)
