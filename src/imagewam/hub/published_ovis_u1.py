"""Published ImageWAM checkpoints on Ovis-U1: the decoder's official names, also for the action expert."""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from ..references import names_a_repo
from .ovis_u1 import convert_ovis_u1_transformer
from .ovis_u1_keys import DECODER_BLOCKS
from .published_family import PublishedFamily, Reference
from .published_weights import Weights, count_blocks, size_of

_REFINER_BLOCKS = "txt_in.individual_token_refiner.blocks"
_UNUSED = re.compile(r"double_blocks\.\d+\.txt_(mod|attn|mlp)\.")
_BLOCK = re.compile(r"(double_blocks|single_blocks)\.(\d+)\.(.+)\.(weight|bias|scale)")
_HEAD_MODULATION = "head.adaLN_modulation.1"
_ACTION_MODULES = {
    "action_encoder": "action_encoder",
    "time_in.in_layer": "timestep_embedder.linear_1",
    "time_in.out_layer": "timestep_embedder.linear_2",
    _HEAD_MODULATION: "norm_out.linear",
    "head.linear": "proj_out",
}


class PublishedOvisU1(PublishedFamily):
    """RoPE axes have the released proportion, 1 : 3.5 : 3.5.

    The published action expert re-uses the whole double block, whose text branch nothing reaches: 254,943,744
    parameters at the released size. Where the state stands among the text tokens needs no option: all text tokens
    have one position, so their order changes nothing.
    """

    family = "ovis-u1"
    marks = ("vector_in.", "txt_in.individual_token_refiner.", "txt_in.cls_token")
    aliases = {"double_blocks.": "double_blocks.", "single_blocks.": "single_blocks."}

    def network_config(self, editing: Weights) -> dict[str, Any]:
        width, in_channels = size_of(editing, "img_in.weight")
        head_dim = size_of(editing, "double_blocks.0.img_attn.norm.query_norm.scale", ndim=1)[0]
        index_axis = head_dim // 8
        image_axis = (head_dim - index_axis) // 2
        return {
            "in_channels": in_channels,
            "out_channels": size_of(editing, "final_layer.linear.weight")[0],
            "num_layers": count_blocks(editing, "double_blocks"),
            "num_single_layers": count_blocks(editing, "single_blocks"),
            "attention_head_dim": head_dim,
            "num_attention_heads": width // head_dim,
            "joint_attention_dim": size_of(editing, "txt_in.input_embedder.weight")[1],
            "axes_dims_rope": [index_axis, image_axis, image_axis],
            "num_refiner_layers": count_blocks(editing, _REFINER_BLOCKS),
            "mlp_ratio": size_of(editing, "double_blocks.0.img_mlp.0.weight")[0] / width,
        }

    def editing_weights(self, editing: Weights, network: dict[str, Any]) -> Weights:
        return convert_ovis_u1_transformer(editing, network)

    def is_unused(self, name: str) -> bool:
        return _UNUSED.match(name) is not None

    def action_weights(self, action: Weights, network: dict[str, Any]) -> Weights:
        width = network["num_attention_heads"] * network["attention_head_dim"]
        converted = {}
        for name, tensor in action.items():
            if not self.is_unused(name):
                converted.update(_converted(name, tensor, width))
        return converted

    def published_name(self, own: str) -> str:
        return own  # errors of the conversion have the published names already

    def published_action_name(self, own: str) -> str:
        own_module, _, parameter = own.rpartition(".")
        for module, name in _ACTION_MODULES.items():
            if name == own_module:
                return f"{module}.{parameter}"
        for blocks, (own_blocks, parts) in DECODER_BLOCKS.items():
            for part, names in parts.items():
                for name in names:
                    if match := re.fullmatch(rf"{own_blocks}\.(\d+)\.{re.escape(name)}", own_module):
                        parameter = "scale" if part.endswith(("query_norm", "key_norm")) else parameter
                        return f"{blocks}.{match[1]}.{part}.{parameter}"
        return own

    def mlp_width(self, action: Weights) -> int:
        return size_of(action, "transformer_blocks.0.ff.net.0.proj.weight", name_of=self.published_action_name)[0]

    def backbone_options(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {}

    def frozen_parts(self, network: dict[str, Any]) -> dict[str, Reference]:
        """No hub repo holds them in diffusers' layout; a converted Ovis-U1 does."""
        return {}


def is_ovis_u1_model(source: str | os.PathLike, revision: str | None = None) -> bool:
    """Whether this folder or hub repo is the published Ovis-U1 model itself, not a policy on it."""
    path = Path(source, "config.json")
    if names_a_repo(os.fspath(source)):
        try:
            path = Path(hf_hub_download(os.fspath(source), "config.json", revision=revision))
        except EntryNotFoundError:
            return False
    return path.is_file() and "visual_generator_config" in json.loads(path.read_text(encoding="utf-8"))


def _converted(name: str, tensor: Tensor, width: int) -> Weights:
    """One published action weight in our names; what has no place keeps its name.

    Args:
        width: of q, k and v.
    """
    module, _, parameter = name.rpartition(".")
    if block := _BLOCK.fullmatch(name):
        blocks, index, part, parameter = block.groups()
        own_blocks, parts = DECODER_BLOCKS[blocks]
        if part not in parts:
            return {name: tensor}
        own = [f"{own_blocks}.{index}.{own_part}" for own_part in parts[part]]
        parameter = "weight" if parameter == "scale" else parameter
        # q, k, v (and the MLP) one after the other
        bounds = [width * at for at in range(len(own))] + [len(tensor)]
        pieces = [tensor[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
        return {f"{own_part}.{parameter}": piece for own_part, piece in zip(own, pieces, strict=True)}
    if module not in _ACTION_MODULES:
        return {name: tensor}
    if module == _HEAD_MODULATION:
        half = len(tensor) // 2  # shift | scale there, scale | shift here
        tensor = torch.cat([tensor[half:], tensor[:half]])
    return {f"{_ACTION_MODULES[module]}.{parameter}": tensor}
