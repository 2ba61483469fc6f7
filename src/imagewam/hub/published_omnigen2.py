"""Published ImageWAM checkpoints on OmniGen2: its own names, with `blocks` and `head` in the action expert."""

import math
from typing import Any

from .published_family import PublishedFamily, Reference
from .published_settings import PACK_STATE, PAD_OMNIGEN2_TEXT
from .published_weights import Weights, count_blocks, size_of

_PATCH_SIZE = 2
_MULTIPLE_OF = 256
# Width of an instruction embedding of the released model.
_TEXT_DIM = 2048
_TEXT_REPO = "Qwen/Qwen2.5-VL-3B-Instruct"
# The bare prompt.
_PROMPT_FORMAT = {"text": None, "max_length": 128}
_ACTION_NAMES = {"blocks.": "layers.", "head.": "norm_out."}


class PublishedOmniGen2(PublishedFamily):
    """RoPE axes are OmniGen2's three equal ones.

    The text encoder is the public Qwen2.5-VL, not the one in OmniGen2's release.
    """

    family = "omnigen2"
    marks = ("time_caption_embed.", "ref_image_patch_embedder.")
    aliases = {"blocks.": "layers."}

    def network_config(self, editing: Weights) -> dict[str, Any]:
        width, patch_channels = size_of(editing, "x_embedder.weight")
        head_dim = size_of(editing, "layers.0.attn.norm_q.weight", ndim=1)[0]
        mlp_width = size_of(editing, "layers.0.feed_forward.linear_1.weight")[0]
        released = _MULTIPLE_OF * math.ceil(4 * width / _MULTIPLE_OF)
        return {
            "patch_size": _PATCH_SIZE,
            "in_channels": patch_channels // _PATCH_SIZE**2,
            "hidden_size": width,
            "num_layers": count_blocks(editing, "layers"),
            "num_refiner_layers": count_blocks(editing, "noise_refiner"),
            "num_attention_heads": size_of(editing, "layers.0.attn.to_q.weight")[0] // head_dim,
            "num_kv_heads": size_of(editing, "layers.0.attn.to_k.weight")[0] // head_dim,
            # The MLP is 4 times the width, rounded up to a multiple of this.
            "multiple_of": _MULTIPLE_OF if mlp_width == released else mlp_width,
            "axes_dim_rope": [head_dim // 3] * 3,
            "text_feat_dim": size_of(editing, "time_caption_embed.caption_embedder.1.weight")[1],
        }

    def editing_weights(self, editing: Weights, network: dict[str, Any]) -> Weights:
        return editing

    def action_weights(self, action: Weights, network: dict[str, Any]) -> Weights:
        return {_renamed(name, _ACTION_NAMES): tensor for name, tensor in action.items()}

    def published_name(self, own: str) -> str:
        return own

    def published_action_name(self, own: str) -> str:
        return _renamed(own, {name: published for published, name in _ACTION_NAMES.items()})

    def mlp_width(self, action: Weights) -> int:
        return size_of(action, "layers.0.feed_forward.linear_1.weight", name_of=self.published_action_name)[0]

    def backbone_options(self, settings: dict[str, Any]) -> dict[str, Any]:
        """With the state behind the padding, the padding decides whether the network ever sees the state."""
        if PACK_STATE not in settings:
            raise ValueError(
                f"it is not known where its state token stands: no config.yaml beside it names {PACK_STATE}. The "
                "published code's default is false, its training scripts say true; give pack_state_after_text"
            )
        packed = settings[PACK_STATE]
        padded = not packed and settings.get(PAD_OMNIGEN2_TEXT, False)
        prompt_format = {**_PROMPT_FORMAT, "padding": "max_length" if padded else "longest"}
        options = {"time_convention": "published", "prompt_format": prompt_format}
        return options if packed else {**options, "pack_state_after_text": False}

    def frozen_parts(self, network: dict[str, Any]) -> dict[str, Reference]:
        if network["text_feat_dim"] != _TEXT_DIM:
            return {}
        return {
            "vae": {"repo": "OmniGen2/OmniGen2", "subfolder": "vae", "revision": None},
            "text_encoder": {"repo": _TEXT_REPO, "subfolder": "", "revision": None},
            "tokenizer": {"repo": _TEXT_REPO, "subfolder": "", "revision": None},
        }


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
