"""Starts the page: `python space/app.py [CHECKPOINT]`, or `make space`."""

import os
import sys
from collections.abc import Sequence

import torch

# Gradio asks its makers for news on import, and counts who uses it.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from ..shipped import METAWORLD_EPISODES, TINY_METAWORLD
from .episodes import EpisodeStore
from .page import Page
from .policies import PolicyStore, on_hub
from .style import CSS, theme

MAX_UPLOAD = "10mb"


def build(checkpoint: str | None) -> gr.Blocks:
    """The page with its policy.

    Args:
        checkpoint: that it opens with, a folder or a repository; by default the policy that comes with the package.
    """
    policy = checkpoint or TINY_METAWORLD
    device = "cuda" if torch.cuda.is_available() else "cpu"
    episodes = METAWORLD_EPISODES if policy == TINY_METAWORLD else ""
    return Page(PolicyStore(own=(policy,), device=device), EpisodeStore(), policy, episodes).build()


def main(argv: Sequence[str] | None = None, port: int | None = None, block: bool = True) -> gr.Blocks:
    """Build and serve: for this machine alone, or for all where the hub runs it."""
    words = sys.argv[1:] if argv is None else list(argv)
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise SystemExit(f"usage: python space/app.py [CHECKPOINT], got {' '.join(words)}")
    page = build(words[0] if words else os.environ.get("CHECKPOINT"))
    page.launch(
        server_name=None if on_hub() else "127.0.0.1",
        server_port=port,
        max_file_size=MAX_UPLOAD,
        show_error=True,
        theme=theme(),
        css=CSS,
        share=False,
        ssr_mode=False,
        footer_links=[],
        prevent_thread_lock=not block,
    )
    return page
