"""A FLUX.2-shaped pipeline small enough for a CPU, whose VAE is fitted to the frames of one dataset."""

import numpy as np
import torch
from diffusers import Flux2KleinPipeline

from ..data.lerobot_dataset import LeRobotDataset
from ..processing.camera_layout import CameraLayout
from ..processing.contract import PolicyContract
from .tiny_pipeline import build_tiny_pipeline
from .tiny_vae import fit_vae

MOST_CANVASES = 512


def fitted_tiny_pipeline(
    dataset: LeRobotDataset, contract: PolicyContract, vae_steps: int, seed: int
) -> Flux2KleinPipeline:
    """The same for the same arguments: transformer and text encoder random, the VAE trained for `vae_steps`."""
    pipeline = build_tiny_pipeline(dataset.tasks.values(), seed=seed)
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
