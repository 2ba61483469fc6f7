"""FLUX.2 [klein] KV in small: the same parts in another pipeline."""

from diffusers import Flux2KleinKVPipeline

import tiny_flux2
from tiny_flux2 import joint_call

__all__ = ["joint_call", "pipeline"]


def pipeline(texts) -> Flux2KleinKVPipeline:
    parts = tiny_flux2.pipeline(texts).components
    return Flux2KleinKVPipeline(**{name: part for name, part in parts.items() if name != "is_distilled"})
