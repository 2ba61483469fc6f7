"""Conversion of the published Ovis-U1 checkpoint to a pipeline folder.

The published checkpoint is one composite model: `llm.*`, `visual_tokenizer.*` and `vte.*` make the conditions,
`visual_generator.backbone.*` and `visual_generator.vae.*` the image.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..modeling.transformers.ovis_u1 import OvisU1Transformer2DModel
from .ovis_u1_keys import DECODER_BLOCKS, KeyMap, decoder_key_map

Weights = dict[str, Tensor]


def convert_ovis_u1_transformer(weights: Weights, config: dict[str, Any] | None = None) -> Weights:
    """Weights of the image decoder in the names of `OvisU1Transformer2DModel`.

    Args:
        weights: published weights, named as below `visual_generator.backbone.`.
        config: of `OvisU1Transformer2DModel`; by default its sizes are read off the weights.

    Raises:
        ValueError: weights are missing, unknown or of a shape that does not fit, each listed by its published name.
    """
    model = _on_meta(OvisU1Transformer2DModel, config or _decoder_sizes(weights))
    converted = _convert(weights, decoder_key_map(model), model)
    for name in ("norm_out.linear.weight", "norm_out.linear.bias"):
        shift, scale = converted[name].chunk(2)
        converted[name] = torch.cat([scale, shift])
    return converted


def convert_ovis_u1_vae(weights: Weights, config: dict[str, Any]) -> Weights:
    """Weights of the VAE in the names of today's `AutoencoderKL`.

    Args:
        weights: named as below `visual_generator.vae.`, with attention named as before or since diffusers 0.18.
        config: of `AutoencoderKL`.

    Raises:
        ValueError: as in `convert_ovis_u1_transformer`.
    """
    model = _on_meta(AutoencoderKL, config)
    weights = dict(weights)
    model._fix_state_dict_keys_on_load(weights)
    return _convert(weights, {name: (name,) for name in model.state_dict()}, model)


def _on_meta(model_class: type, config: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return model_class.from_config(config)


def _decoder_sizes(weights: Weights) -> dict[str, Any]:
    """What the weights tell of the decoder's config: everything but the RoPE axes, which change no shape."""
    width, in_channels = _shape(weights, "img_in.weight")
    (head_dim,) = _shape(weights, "double_blocks.0.img_attn.norm.query_norm.scale")
    num_refiner_layers, num_layers, num_single_layers = (_count_blocks(weights, name) for name in DECODER_BLOCKS)
    return {
        "in_channels": in_channels,
        "out_channels": _shape(weights, "final_layer.linear.weight")[0],
        "num_layers": num_layers,
        "num_single_layers": num_single_layers,
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": _shape(weights, "txt_in.input_embedder.weight")[1],
        "axes_dims_rope": (head_dim,),
        "num_refiner_layers": num_refiner_layers,
        "mlp_ratio": _shape(weights, "double_blocks.0.img_mlp.0.weight")[0] / width,
    }


def _shape(weights: Weights, name: str) -> torch.Size:
    if name not in weights:
        raise ValueError(f"no weights of Ovis-U1's image decoder: {name} is missing")
    return weights[name].shape


def _count_blocks(weights: Weights, blocks: str) -> int:
    indices = [int(name.removeprefix(f"{blocks}.").split(".")[0]) for name in weights if name.startswith(f"{blocks}.")]
    return 1 + max(indices, default=-1)


def _convert(weights: Weights, key_map: KeyMap, model: nn.Module) -> Weights:
    """Rename and split; every published weight is used once and has the shape that the port's parameters ask for."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"missing: {name}" for name in key_map if name not in weights]
    problems += [f"unknown: {name}" for name in weights if name not in key_map]
    for name in key_map.keys() & weights.keys():
        expected = _joined_shape([shapes[port] for port in key_map[name]])
        if weights[name].shape != expected:
            problems.append(f"{name}: expected shape {tuple(expected)}, got {tuple(weights[name].shape)}")
    if problems:
        raise ValueError(f"these are not the weights of {type(model).__name__}:\n  " + "\n  ".join(sorted(problems)))
    converted = {}
    for name, ports in key_map.items():
        parts = weights[name].split([shapes[port][0] for port in ports])
        # Parts of one tensor get storage of their own: safetensors stores no views.
        converted.update(zip(ports, parts if len(ports) == 1 else [part.clone() for part in parts], strict=True))
    return converted


def _joined_shape(shapes: list[torch.Size]) -> torch.Size:
    return torch.Size([sum(shape[0] for shape in shapes), *shapes[0][1:]])
