"""Conversion of the published Ovis-U1 checkpoint to the folder layout of diffusers pipelines.

The published checkpoint is one composite model: `llm.*`, `visual_tokenizer.*`, `vte.*` and `visual_generator.*`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.transformers.ovis_u1 import OvisU1Transformer2DModel

Weights = dict[str, Tensor]
# Published parameter -> where its rows go, in order.
KeyMap = dict[str, tuple[str, ...]]

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_SHIFT_SCALE = "final_layer.adaLN_modulation.1"
_DECODER = {
    "img_in": ("x_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "txt_in.input_embedder": ("context_refiner.proj_in",),
    "txt_in.c_embedder.linear_1": ("context_refiner.context_embedder.linear_1",),
    "txt_in.c_embedder.linear_2": ("context_refiner.context_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    _SHIFT_SCALE: ("norm_out.linear",),
}
_REFINER_BLOCK = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "self_attn_qkv": _QKV,
    "self_attn_proj": ("attn.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm_out.linear",),
}
_DOUBLE_BLOCK = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": _QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_self_attn.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "img_self_attn.proj": ("attn2.to_out.0",),
    "img_self_attn.norm.query_norm": ("attn2.norm_q",),
    "img_self_attn.norm.key_norm": ("attn2.norm_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE_BLOCK = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
# Published name of a list of blocks -> name in the port, and what a block holds.
_DECODER_BLOCKS = {
    "txt_in.individual_token_refiner.blocks": ("context_refiner.token_refiner.refiner_blocks", _REFINER_BLOCK),
    "double_blocks": ("transformer_blocks", _DOUBLE_BLOCK),
    "single_blocks": ("single_transformer_blocks", _SINGLE_BLOCK),
}


def convert_ovis_u1_transformer(weights: Weights, config: dict[str, Any] | None = None) -> Weights:
    """Weights of the image decoder in the names of `OvisU1Transformer2DModel`.

    Args:
        weights: published weights, named as below `visual_generator.backbone.`.
        config: of `OvisU1Transformer2DModel`; by default its sizes are read off the weights.

    Raises:
        ValueError: weights are missing, unknown or of a shape that does not fit, each listed by its published name.
    """
    with torch.device("meta"):
        model = OvisU1Transformer2DModel.from_config(config or _decoder_sizes(weights))
    converted = _convert(weights, _decoder_key_map(model), model)
    for name in ("norm_out.linear.weight", "norm_out.linear.bias"):
        shift, scale = converted[name].chunk(2)
        converted[name] = torch.cat([scale, shift])
    return converted


def _decoder_sizes(weights: Weights) -> dict[str, Any]:
    """What the weights tell of the decoder's config: everything but the RoPE axes, which change no shape."""
    width, in_channels = _shape(weights, "img_in.weight")
    (head_dim,) = _shape(weights, "double_blocks.0.img_attn.norm.query_norm.scale")
    num_refiner_layers, num_layers, num_single_layers = (_count_blocks(weights, name) for name in _DECODER_BLOCKS)
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


def _decoder_key_map(model: OvisU1Transformer2DModel) -> KeyMap:
    modules = dict(_DECODER)
    for blocks, (port_blocks, block) in _DECODER_BLOCKS.items():
        for index in range(len(model.get_submodule(port_blocks))):
            for name, ports in block.items():
                modules[f"{blocks}.{index}.{name}"] = tuple(f"{port_blocks}.{index}.{port}" for port in ports)
    key_map = {"txt_in.cls_token": ("context_refiner.summary_token",)}
    for name, ports in modules.items():
        for parameter, _ in model.get_submodule(ports[0]).named_parameters():
            published = "scale" if name.endswith(("query_norm", "key_norm")) else parameter
            key_map[f"{name}.{published}"] = tuple(f"{port}.{parameter}" for port in ports)
    return key_map


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
