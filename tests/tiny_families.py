"""A tiny pipeline of every editing family, for the tests that all families must pass."""

from collections.abc import Callable, Sequence

from diffusers import DiffusionPipeline

from imagewam.demo.tiny_pipeline import build_tiny_pipeline
from tiny_pipelines import tiny_omnigen2_pipeline, tiny_ovis_u1_pipeline


def tiny_flux2_klein_pipeline(texts: Sequence[str]) -> DiffusionPipeline:
    return build_tiny_pipeline(texts, num_layers=1, num_single_layers=2, heads=2, head_dim=16, text_width=16)


# Each gives tokens of 8 x 8 pixels.
FAMILIES: dict[str, Callable[[Sequence[str]], DiffusionPipeline]] = {
    "flux2-klein": tiny_flux2_klein_pipeline,
    "omnigen2": tiny_omnigen2_pipeline,
    "ovis-u1": tiny_ovis_u1_pipeline,
}
