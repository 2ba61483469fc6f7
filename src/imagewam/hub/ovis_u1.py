"""Conversion of the published Ovis-U1 checkpoint to a pipeline folder.

The published checkpoint is one composite model: `llm.*`, `visual_tokenizer.*` and `vte.*` make the conditions,
`visual_generator.backbone.*` and `visual_generator.vae.*` the image.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from ..atomic import atomic_folder, atomic_write_text
from ..modeling.transformers.ovis_u1 import OvisU1Transformer2DModel
from ..modeling.transformers.ovis_u1_condition import OvisU1ConditionConfig, OvisU1ConditionEncoder
from ..references import names_a_repo
from .ovis_u1_config import condition_config, decoder_config, generator_config, scheduler, vae_config
from .ovis_u1_keys import DECODER_BLOCKS, KeyMap, condition_encoder_key_map, decoder_key_map
from .published_weights import check_values

Weights = dict[str, Tensor]

_DECODER, _VAE = "visual_generator.backbone.", "visual_generator.vae."
_CONDITION_ENCODER = ("llm.", "visual_tokenizer.", "vte.")
_LM_HEAD, _EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
_PATCH_PROJECTION = "visual_tokenizer.backbone.preprocessor.patchifier.proj.weight"
# The features are taken in front of this norm.
_UNUSED = "visual_tokenizer.backbone.trunk.post_trunk_norm.weight"


def convert_ovis_u1(
    source: str | os.PathLike,
    output: str | os.PathLike,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the published checkpoint as an `OvisU1Pipeline` folder, one part in memory at a time.

    Args:
        source: a Hub repo, or a folder with `config.json`, `model.safetensors` (whole or sharded) and the tokenizer.
        output: folder that appears when everything is converted.
        revision: of a Hub repo.
        dtype: of the written weights; as published by default.

    Raises:
        FileNotFoundError: the source is no folder, or holds no weights.
        ValueError: weights or settings are missing, unknown or do not fit, each listed by its published name.
    """
    folder = _local_folder(source, revision)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    files = _weight_files(folder)
    generator = generator_config(config)
    with atomic_folder(output, replaces=("*/*.safetensors", "*/*.safetensors.index.json")) as staging:
        staging = Path(staging)
        index = {"_class_name": "OvisU1Pipeline", "_diffusers_version": diffusers.__version__}

        def save(name: str, part: Any) -> None:
            part.save_pretrained(staging / name)
            index[name] = _library_and_class(type(part))

        def save_weights(name: str, model: nn.Module, convert: Callable[..., Weights], *prefixes: str) -> None:
            weights = convert(_read(files, *prefixes), model.config)
            if dtype is not None:
                weights = {key: tensor.to(dtype) for key, tensor in weights.items()}
            model.load_state_dict(weights, assign=True)
            save(name, model)
            model.to("meta")

        decoder = _on_meta(OvisU1Transformer2DModel, decoder_config(generator))
        vae = _on_meta(AutoencoderKL, vae_config(generator))
        encoder = _condition_encoder_on_meta(condition_config(config))
        save_weights("transformer", decoder, convert_ovis_u1_transformer, _DECODER)
        save_weights("vae", vae, convert_ovis_u1_vae, _VAE)
        save_weights("text_encoder", encoder, convert_ovis_u1_condition_encoder, *_CONDITION_ENCODER)
        save("tokenizer", Qwen2Tokenizer.from_pretrained(folder))
        save("scheduler", scheduler(generator))
        atomic_write_text(staging / "model_index.json", json.dumps(index, indent=2) + "\n")


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


def convert_ovis_u1_condition_encoder(weights: Weights, config: OvisU1ConditionConfig) -> Weights:
    """Weights of language model, visual tokenizer and visual embeddings in the names of `OvisU1ConditionEncoder`.

    Args:
        weights: with the published prefixes `llm.`, `visual_tokenizer.` and `vte.`. A language model head is dropped
            where it equals the embedding that it was tied to, and so is the trunk's unused last norm.

    Raises:
        ValueError: as in `convert_ovis_u1_transformer`, or the language model's head was not tied.
    """
    weights = dict(weights)
    head = weights.pop(_LM_HEAD, None)
    if head is not None and not (_EMBEDDING in weights and torch.equal(head, weights[_EMBEDDING])):
        raise ValueError(f"{_LM_HEAD} differs from {_EMBEDDING}, though both are one weight in the published model")
    weights.pop(_UNUSED, None)
    if _PATCH_PROJECTION in weights:
        weights[_PATCH_PROJECTION] = weights[_PATCH_PROJECTION].flatten(1)  # a convolution over whole patches
    model = _condition_encoder_on_meta(config)
    return _convert(weights, condition_encoder_key_map(model.state_dict()), model)


def _condition_encoder_on_meta(config: OvisU1ConditionConfig) -> OvisU1ConditionEncoder:
    with torch.device("meta"):
        return OvisU1ConditionEncoder(config)


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


def _local_folder(source: str | os.PathLike, revision: str | None) -> Path:
    if names_a_repo(os.fspath(source)):
        patterns = ["*.json", "*.safetensors", "*.txt"]
        return Path(snapshot_download(os.fspath(source), revision=revision, allow_patterns=patterns))
    if revision is not None:
        raise ValueError(f"revision {revision!r} was given, but {source} is no Hub repo")
    if not Path(source).is_dir():
        raise FileNotFoundError(f"{source} is neither a folder nor a Hub repo")
    return Path(source)


def _weight_files(folder: Path) -> list[Path]:
    """The checkpoint's safetensors files, whose weights must all belong to a known part."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
    files = [folder / name for name in names]
    unknown = [name for name in _names(files) if not name.startswith((_DECODER, _VAE, *_CONDITION_ENCODER))]
    if unknown:
        raise ValueError(f"{folder}: weights that belong to no part of Ovis-U1: {unknown}")
    return files


def _names(files: list[Path]) -> list[str]:
    names = []
    for path in files:
        with safe_open(path, "pt") as file:
            names += file.keys()
    return names


def _read(files: list[Path], *prefixes: str) -> Weights:
    """Weights below `prefixes`; a single prefix is taken off their names."""
    weights = {}
    for path in files:
        with safe_open(path, "pt") as file:
            weights.update({name: file.get_tensor(name) for name in file.keys() if name.startswith(prefixes)})
    check_values(weights)
    if len(prefixes) > 1:
        return weights
    return {name.removeprefix(prefixes[0]): tensor for name, tensor in weights.items()}


def _library_and_class(part: type) -> list[str]:
    """How diffusers' `model_index.json` names a class."""
    library = part.__module__.split(".")[0]
    return [library if library in ("diffusers", "transformers") else part.__module__, part.__name__]
