"""Frozen parts for a policy from a published checkpoint, which holds none."""

import os
from collections.abc import Sequence

from ..modeling.backbones import family_of_pipeline
from ..modeling.frozen_parts import reference_to
from ..modeling.memory import align_weights
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from .flux2_autoencoder import load_flux2_autoencoder

TOKENIZER = "tokenizer"
_FLUX2_FAMILIES = ("flux2-klein", "flux2")


def attach_base(
    policy: ImageWAMForActionPrediction,
    base: str | os.PathLike,
    revision: str | None = None,
    parts: Sequence[str] | None = None,
) -> list[str]:
    """Frozen parts and tokenizer of an editing pipeline; nothing else of it is read.

    Args:
        base: folder or hub repo of the pipeline.
        revision: of the repo.
        parts: those to take; by default the ones without a hub repo that is known to be the checkpoint's.

    Returns:
        Names of what was taken.

    Raises:
        ValueError: the pipeline is of another family, a part is unknown, or all parts have a repo and none was named.
    """
    family, backbone = family_of_pipeline(base, revision), policy.backbone
    if family.family != backbone.family:
        raise ValueError(f"{base} is a pipeline of {family.family}, the checkpoint is of {backbone.family}")
    known = [*family.frozen_loaders, TOKENIZER]
    parts = _parts_without_repo(policy) if parts is None else parts
    if unknown := [name for name in parts if name not in known]:
        raise ValueError(f"base_parts: expected some of {known}, got {unknown}")
    if not parts:
        homes = {name: reference["repo"] for name, reference in policy.config.frozen_parts.items()}
        homes[TOKENIZER] = backbone.tokenizer_source["repo"]
        raise ValueError(
            f"nothing would be taken from the base {base}: the checkpoint was trained with {homes}; name in "
            "base_parts what should come from the base instead"
        )
    components = {name: family.tokenizer_component if name == TOKENIZER else name for name in known}
    left_out = dict.fromkeys(component for name, component in components.items() if name not in parts)
    pipeline = family.load_pipeline(os.fspath(base), revision, policy.dtype, transformer=None, **left_out)
    for name in parts:
        part = getattr(pipeline, components[name])
        if name == TOKENIZER:
            backbone.tokenizer = part = getattr(part, "tokenizer", part)
        else:
            backbone.attach_frozen(name, align_weights(part))
        path = getattr(part, "name_or_path", None) or getattr(getattr(part, "config", None), "_name_or_path", None)
        reference = reference_to(path, components[name], os.fspath(base), revision)
        if name == TOKENIZER:
            backbone.tokenizer_source = reference
        else:
            policy.config.frozen_parts[name] = reference
    return list(parts)


def _parts_without_repo(policy: ImageWAMForActionPrediction) -> list[str]:
    source = policy.backbone.tokenizer_source
    return policy.homeless_frozen_parts + ([] if source and source.get("repo") else [TOKENIZER])


def attach_flux2_autoencoder(policy: ImageWAMForActionPrediction, path: str | os.PathLike) -> None:
    """The VAE in a file or folder, see `load_flux2_autoencoder`.

    Raises:
        ValueError: the policy is not on FLUX.2.
    """
    if policy.backbone.family not in _FLUX2_FAMILIES:
        raise ValueError(f"{path}: only FLUX.2 has its autoencoder in a file, the checkpoint is of another family")
    policy.backbone.attach_frozen("vae", load_flux2_autoencoder(path).to(policy.dtype))
    policy.config.frozen_parts["vae"] = {"repo": None, "subfolder": "vae", "revision": None}
