"""One file per editing family."""

from . import flux2
from .base import EditingBackbone, family_of_pipeline, get_family, register_family

__all__ = ["EditingBackbone", "family_of_pipeline", "flux2", "get_family", "register_family"]
