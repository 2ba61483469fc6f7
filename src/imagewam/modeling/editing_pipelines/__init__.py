"""Editing pipelines that diffusers does not ship."""
