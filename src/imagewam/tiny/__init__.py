"""Policies small enough for a CPU, from nothing: pipeline, recipe, and what their model cards tell."""
