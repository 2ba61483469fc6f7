"""Frozen parts for a policy from a published checkpoint, which holds none."""

import os

from ..modeling.backbones import family_of_pipeline
from ..modeling.memory import align_weights
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from .flux2_autoencoder import load_flux2_autoencoder

_FLUX2_FAMILIES = ("flux2-klein", "flux2")


def attach_base(policy: ImageWAMForActionPrediction, base: str | os.PathLike, revision: str | None = None) -> None:
    """VAE, text encoder and tokenizer of an editing pipeline; its transformer is not read.

    Args:
        base: folder or hub repo of the pipeline.
        revision: of the repo.

    Raises:
        ValueError: the pipeline is of another family.
    """
    family = family_of_pipeline(base, revision)
    if family.family != policy.backbone.family:
        raise ValueError(f"{base} is a pipeline of {family.family}, the checkpoint is of {policy.backbone.family}")
    pipeline = family.load_pipeline(os.fspath(base), revision, policy.dtype, transformer=None)
    policy.backbone.attach_pipeline(pipeline, os.fspath(base), revision)
    for name in family.frozen_loaders:
        align_weights(policy.backbone.frozen_part(name))


def attach_flux2_autoencoder(policy: ImageWAMForActionPrediction, path: str | os.PathLike) -> None:
    """The VAE in a file or folder, see `load_flux2_autoencoder`.

    Raises:
        ValueError: the policy is not on FLUX.2.
    """
    if policy.backbone.family not in _FLUX2_FAMILIES:
        raise ValueError(f"{path}: only FLUX.2 has its autoencoder in a file, the checkpoint is of another family")
    policy.backbone.attach_frozen("vae", load_flux2_autoencoder(path).to(policy.dtype))
    policy.config.frozen_parts["vae"] = {"repo": None, "subfolder": "vae", "revision": None}
