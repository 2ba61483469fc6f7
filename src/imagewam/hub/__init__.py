"""Checkpoints that come from elsewhere."""

from .published import convert_published_checkpoint

__all__ = ["convert_published_checkpoint"]
