"""Checkpoints that come from elsewhere."""

from .flux2_autoencoder import load_flux2_autoencoder
from .published import convert_published_checkpoint, read_published_checkpoint

__all__ = ["convert_published_checkpoint", "load_flux2_autoencoder", "read_published_checkpoint"]
