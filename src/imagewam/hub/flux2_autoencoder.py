"""FLUX.2's autoencoder from one file, in its original naming (`ae.safetensors`) or in diffusers'."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..modeling.memory import align_weights
from .published_weights import Weights, check_coverage, check_values, count_blocks, own_storage, size_of

_BATCHES_SEEN = "bn.num_batches_tracked"
# What stands elsewhere than in the older autoencoders that diffusers converts.
_MOVED = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}


def load_flux2_autoencoder(path: str | os.PathLike) -> AutoencoderKLFlux2:
    """The autoencoder in a `.safetensors` file, or in a folder with one such file.

    Its sizes are those of a diffusers `config.json` beside the file, or else read off the weights.

    Raises:
        FileNotFoundError: there is no such file, or the folder does not hold exactly one.
        OSError: the file is corrupt or truncated.
        ValueError: weights are missing, left over or mis-shaped, each listed by name.
    """
    file = _weight_file(Path(path))
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise OSError(f"{file} is corrupt or truncated: {error}") from error
    try:
        check_values({name: tensor for name, tensor in weights.items() if name != _BATCHES_SEEN})
        if any(name.startswith("encoder.down.") for name in weights):
            weights = _to_diffusers(weights)
        config = _stored_config(file.parent) or _config(weights)
        with torch.device("meta"):
            autoencoder = AutoencoderKLFlux2.from_config(config)
        weights = {_BATCHES_SEEN: torch.tensor(0), **weights}
        check_coverage({name: tensor.shape for name, tensor in autoencoder.state_dict().items()}, weights)
    except ValueError as error:
        raise ValueError(f"{file} is no autoencoder of FLUX.2: {error}") from error
    autoencoder.load_state_dict({name: own_storage(tensor) for name, tensor in weights.items()}, assign=True)
    return align_weights(autoencoder).eval()


def _weight_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"no such file or folder: {path}")
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise FileNotFoundError(f"expected one .safetensors file in {path}, got {[file.name for file in files]}")
    return files[0]


def _to_diffusers(weights: Weights) -> Weights:
    """Original names -> diffusers' names.

    Raises:
        ValueError: names that diffusers' conversion does not know.
    """
    statistics = {name: tensor for name, tensor in weights.items() if name.startswith("bn.")}
    rest = {_moved(name): tensor for name, tensor in weights.items() if name not in statistics}
    levels = {
        "down_block_types": [None] * count_blocks(rest, "encoder.down"),
        "up_block_types": [None] * count_blocks(rest, "decoder.up"),
    }
    converted = convert_ldm_vae_checkpoint(rest, levels)
    # The conversion keeps silent about what it does not know; what it knows keeps its memory.
    known = {tensor.data_ptr() for tensor in converted.values()}
    if unknown := sorted(name for name, tensor in rest.items() if tensor.data_ptr() not in known):
        raise ValueError(f"unknown weights {unknown}")
    return {**converted, **statistics}


def _moved(name: str) -> str:
    for old, new in _MOVED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _stored_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    return config if config.get("_class_name") == AutoencoderKLFlux2.__name__ else None


def _config(weights: Weights) -> dict[str, Any]:
    """What weights in diffusers' names tell of the config."""
    encoder, decoder = (_widths(weights, name) for name in ("encoder.down_blocks", "decoder.up_blocks"))
    return {
        "in_channels": size_of(weights, "encoder.conv_in.weight", ndim=4)[1],
        "out_channels": size_of(weights, "decoder.conv_out.weight", ndim=4)[0],
        "down_block_types": ["DownEncoderBlock2D"] * len(encoder),
        "up_block_types": ["UpDecoderBlock2D"] * len(decoder),
        "block_out_channels": encoder,
        "decoder_block_out_channels": decoder[::-1],
        "layers_per_block": count_blocks(weights, "encoder.down_blocks.0.resnets"),
        "latent_channels": size_of(weights, "decoder.conv_in.weight", ndim=4)[1],
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
        "mid_block_add_attention": any(name.startswith("encoder.mid_block.attentions.") for name in weights),
    }


def _widths(weights: Weights, blocks: str) -> list[int]:
    count = count_blocks(weights, blocks)
    return [size_of(weights, f"{blocks}.{level}.resnets.0.conv1.weight", ndim=4)[0] for level in range(count)]
