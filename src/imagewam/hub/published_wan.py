"""Published FastWAM checkpoints: the video baseline on Wan2.2-TI2V-5B, in the official names of Wan."""

import math
from typing import Any

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from .published_family import PublishedFamily, Reference
from .published_settings import VIDEO_STRIDE
from .published_weights import Weights, count_blocks, size_of

# Weights do not tell the heads apart: Wan's are of this size.
_HEAD_DIM = 128
_REPO = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
# (channels, width of an instruction embedding) of the released model, whose VAE and text encoder that repo holds.
_RELEASED = (48, 4096)
_TEXT_LENGTH = 128
_ACTION_NAMES = {"blocks.": "layers.", "head.": "proj_out."}


class PublishedWan(PublishedFamily):
    """Actions leave through one linear map, `head`.

    A file does not tell which of FastWAM's variants it is: they have the same weights.
    """

    family = "wan2.2-ti2v"
    preset = "fastwam"
    horizon = 32
    robotwin_head = (256, 320)
    editing_prefix = ""
    marks = ("patch_embedding.", "time_projection.")
    aliases = {}

    def network_config(self, editing: Weights) -> dict[str, Any]:
        width, in_channels, *patch_size = size_of(editing, "patch_embedding.weight", ndim=5)
        if width % _HEAD_DIM:
            raise ValueError(f"expected a Wan network with heads of {_HEAD_DIM}, got one of width {width}")
        return {
            "patch_size": patch_size,
            "num_attention_heads": width // _HEAD_DIM,
            "attention_head_dim": _HEAD_DIM,
            "in_channels": in_channels,
            "out_channels": size_of(editing, "head.head.weight")[0] // math.prod(patch_size),
            "text_dim": size_of(editing, "text_embedding.0.weight")[1],
            "freq_dim": size_of(editing, "time_embedding.0.weight")[1],
            "ffn_dim": size_of(editing, "blocks.0.ffn.0.weight")[0],
            "num_layers": count_blocks(editing, "blocks"),
        }

    def editing_weights(self, editing: Weights, network: dict[str, Any]) -> Weights:
        return convert_wan_transformer_to_diffusers(dict(editing))

    def action_weights(self, action: Weights, network: dict[str, Any]) -> Weights:
        return convert_wan_transformer_to_diffusers({_action_name(name): tensor for name, tensor in action.items()})

    def mlp_width(self, action: Weights) -> int:
        return size_of(action, "layers.0.ffn.net.0.proj.weight")[0]

    def backbone_options(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Padding is attended to, so its length is part of the computation."""
        return {"text_length": _TEXT_LENGTH}

    def target_offsets(self, settings: dict[str, Any], horizon: int) -> list[int]:
        """Every fourth frame, unless the settings name another stride."""
        stride = settings.get(VIDEO_STRIDE, 4)
        return list(range(stride, horizon + 1, stride))

    def frozen_parts(self, network: dict[str, Any]) -> dict[str, Reference]:
        if (network["in_channels"], network["text_dim"]) != _RELEASED:
            return {}
        return {
            name: {"repo": _REPO, "subfolder": name, "revision": None} for name in ("vae", "text_encoder", "tokenizer")
        }


def _action_name(name: str) -> str:
    for published, own in _ACTION_NAMES.items():
        if name.startswith(published):
            return own + name.removeprefix(published)
    return name
