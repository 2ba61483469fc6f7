"""One file per editing family."""

from . import flux2, omnigen2, ovis_u1
from .base import EditingBackbone, family_of_pipeline, get_family, register_family

__all__ = ["EditingBackbone", "family_of_pipeline", "flux2", "get_family", "omnigen2", "ovis_u1", "register_family"]
