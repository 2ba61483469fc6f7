"""ImageWAM: robot policies that read the keys and values of an image-editing diffusion model."""

__version__ = "0.1.0.dev0"
