"""Import of published ImageWAM checkpoints on FLUX.2 [klein]: `model.pt`, with `dataset_stats.json` beside it.

The file holds `{"mot": weights, "proprio_encoder": weights, "step", "torch_dtype", ...}` in the official FLUX.2 names;
`mixtures.video.{double,single}_blocks.*` repeat the weights below `mixtures.video.transformer.`.
"""

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from torch import Tensor

from ..configuration_imagewam import ImageWAMConfig
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing.normalization import NORMALIZATIONS
from ..processing_imagewam import ImageWAMProcessor
from .published_contracts import published_contract

Weights = dict[str, Tensor]

_EDITING, _ALIAS, _ACTION = "mixtures.video.transformer.", "mixtures.video.", "mixtures.action."
# Entries beside the weights that a policy does not need.
_IGNORED = {"step", "torch_dtype", "checkpoint_format", "save_trainable_only", "optimizer"}
_HORIZON = 16
# Width of an instruction embedding -> the repos that hold that size's VAE and its text encoder.
_FROZEN_REPOS = {
    7680: ("black-forest-labs/FLUX.2-klein-4B", "Qwen/Qwen3-4B"),
    12288: ("black-forest-labs/FLUX.2-klein-9B", "Qwen/Qwen3-8B"),
}


def convert_published_checkpoint(
    checkpoint: str | os.PathLike,
    *,
    backbone_config: dict[str, Any] | None = None,
    statistics: dict[str, Any] | str | os.PathLike | None = None,
) -> tuple[ImageWAMForActionPrediction, ImageWAMProcessor]:
    """Policy and processor of a published checkpoint, with the settings it was trained with (preset "published").

    Args:
        checkpoint: a `model.pt`, or the folder that holds it. Read with `weights_only=True`.
        backbone_config: entries of `Flux2Transformer2DModel`'s config that the weights do not tell (RoPE axes and
            theta), on top of those that are read off the weights.
        statistics: of the training data: `{"state": {...}, "action": {...}}`, or a published `dataset_stats.json`, or
            its content. By default the `dataset_stats.json` beside the checkpoint.

    Raises:
        ValueError: weights are missing, left over or differ from their aliases, each listed by name; the file holds
            only a part of the weights; the state or action size belongs to no published robot.

    Warns:
        UserWarning: no statistics were found; the processor then leaves states and actions as they are.
    """
    checkpoint = Path(checkpoint)
    if checkpoint.is_dir():
        checkpoint = checkpoint / "model.pt"
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    policy = _convert_policy(content, checkpoint, backbone_config or {})
    contract = published_contract(policy.config.action_dim, policy.config.state_dim, _HORIZON)
    statistics = _statistics(statistics, checkpoint, policy.config)
    return policy, ImageWAMProcessor.for_policy(policy, contract, statistics)


def _convert_policy(content: dict, checkpoint: Path, backbone_config: dict) -> ImageWAMForActionPrediction:
    editing, action, state = _split_weights(content, checkpoint)
    network = {**_network_config(editing, checkpoint), **backbone_config}
    editing = _to_diffusers(editing, checkpoint)
    action = _to_diffusers(action, checkpoint)
    weights = {
        **{f"backbone.transformer.{name}": tensor for name, tensor in editing.items()},
        **{f"action_expert.{name}": tensor for name, tensor in action.items()},
        **{f"state_encoder.{name}": tensor for name, tensor in state.items()},
    }
    weights = {name: _own_storage(tensor) for name, tensor in weights.items()}
    hidden_size, action_dim = _needed(weights, "action_expert.action_encoder.weight", checkpoint).shape
    mlp_width = _needed(weights, "action_expert.transformer_blocks.0.ff.linear_out.weight", checkpoint).shape[1]
    frozen_parts = _frozen_parts(network["joint_attention_dim"])
    tokenizer_source = frozen_parts.pop("tokenizer", None)
    config = ImageWAMConfig.from_preset(
        "published",
        backbone={"family": "flux2-klein", "transformer": network, "rope_dtype": "model"},
        frozen_parts=frozen_parts,
        action_dim=action_dim,
        state_dim=_needed(weights, "state_encoder.weight", checkpoint).shape[1] if state else 0,
        action_horizon=_HORIZON,
        action_hidden_size=hidden_size,
        action_mlp_ratio=mlp_width / hidden_size,
    )
    with torch.device("meta"):
        policy = ImageWAMForActionPrediction(config)
    _check_coverage(set(policy.state_dict()), set(weights), checkpoint)
    policy.load_state_dict(weights, assign=True)
    policy.backbone.tokenizer_source = tokenizer_source
    return policy.eval()


def _split_weights(content: dict, checkpoint: Path) -> tuple[Weights, Weights, Weights]:
    """Editing transformer, action expert (both in official FLUX.2 names) and state encoder."""
    unknown = set(content) - _IGNORED - {"mot", "proprio_encoder"}
    if unknown or "mot" not in content:
        raise ValueError(f"{checkpoint} is no published ImageWAM checkpoint: it holds {sorted(content)}")
    if content.get("checkpoint_format") == "trainable_only":
        raise ValueError(f"{checkpoint} holds only the trained part of the weights; merge it with its base first")
    editing, action, aliases, left_over = {}, {}, {}, []
    for name, tensor in content["mot"].items():
        if name.startswith(_EDITING):
            editing[name.removeprefix(_EDITING)] = tensor
        elif name.startswith((_ALIAS + "double_blocks.", _ALIAS + "single_blocks.")):
            aliases[name.removeprefix(_ALIAS)] = tensor
        elif name.startswith(_ACTION):
            action[re.sub(r"^head\.", "final_layer.", name.removeprefix(_ACTION))] = tensor
        else:
            left_over.append(name)
    if left_over:
        raise ValueError(f"{checkpoint}: weights that belong to no part of a policy: {left_over}")
    _check_aliases(editing, aliases, checkpoint)
    return editing, action, dict(content.get("proprio_encoder") or {})


def _check_aliases(editing: Weights, aliases: Weights, checkpoint: Path) -> None:
    differing = [name for name, t in aliases.items() if name not in editing or not torch.equal(t, editing[name])]
    if differing:
        raise ValueError(
            f"{checkpoint}: these weights stand in the file twice, and differ, so it is unclear which were trained: "
            f"{[_ALIAS + name for name in differing]}"
        )


def _check_coverage(expected: set[str], found: set[str], checkpoint: Path) -> None:
    if expected != found:
        raise ValueError(
            f"{checkpoint} does not hold the weights of this network:\n"
            f"  missing: {sorted(expected - found)}\n  left over: {sorted(found - expected)}"
        )


def _to_diffusers(weights: Weights, checkpoint: Path) -> Weights:
    """Official FLUX.2 names -> diffusers' names; the action expert's layers are named alike."""
    try:
        return convert_flux2_transformer_checkpoint_to_diffusers(weights)
    except KeyError as error:
        raise ValueError(f"{checkpoint}: FLUX.2 has no weight called {error}") from error


def _own_storage(tensor: Tensor) -> Tensor:
    """q, k and v come as views of one fused tensor; kernels may round differently on a view than on a loaded copy."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _needed(weights: Weights, name: str, checkpoint: Path) -> Tensor:
    if name not in weights:
        raise ValueError(f"{checkpoint} does not hold the weights of a policy on FLUX.2: it lacks {name}")
    return weights[name]


def _network_config(editing: Weights, checkpoint: Path) -> dict[str, Any]:
    """What the weights tell of `Flux2Transformer2DModel`'s config; RoPE axes are FLUX.2's four equal ones."""
    width, in_channels = _needed(editing, "img_in.weight", checkpoint).shape
    head_dim = _needed(editing, "single_blocks.0.norm.query_norm.scale", checkpoint).shape[0]
    mlp_width = _needed(editing, "double_blocks.0.img_mlp.2.weight", checkpoint).shape[1]
    text_dim = _needed(editing, "txt_in.weight", checkpoint).shape[1]
    return {
        "in_channels": in_channels,
        "num_layers": _count_blocks(editing, "double_blocks"),
        "num_single_layers": _count_blocks(editing, "single_blocks"),
        "num_attention_heads": width // head_dim,
        "attention_head_dim": head_dim,
        "joint_attention_dim": text_dim,
        "mlp_ratio": mlp_width / width,
        "axes_dims_rope": [head_dim // 4] * 4,
        "guidance_embeds": "guidance_in.in_layer.weight" in editing,
    }


def _count_blocks(weights: Weights, kind: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith(f"{kind}."))


def _frozen_parts(text_dim: int) -> dict[str, dict[str, str | None]]:
    if text_dim not in _FROZEN_REPOS:
        return {}
    flux, qwen = _FROZEN_REPOS[text_dim]
    return {
        "vae": {"repo": flux, "subfolder": "vae", "revision": None},
        "text_encoder": {"repo": qwen, "subfolder": "", "revision": None},
        "tokenizer": {"repo": qwen, "subfolder": "", "revision": None},
    }


def _statistics(statistics: Any, checkpoint: Path, config: ImageWAMConfig) -> dict[str, dict]:
    if statistics is None and (checkpoint.parent / "dataset_stats.json").exists():
        statistics = checkpoint.parent / "dataset_stats.json"
    if statistics is None:
        warnings.warn(
            f"no dataset_stats.json beside {checkpoint.name} and no statistics given: states must come, and actions "
            "will leave, normalised",
            stacklevel=3,
        )
        return {"state": _identity(config.state_dim), "action": _identity(config.action_dim)}
    if not isinstance(statistics, dict):
        statistics = json.loads(Path(statistics).read_text())
    return {what: _global_statistics(statistics[what]) for what in ("state", "action")}


def _identity(dim: int) -> dict[str, list[float]]:
    """Statistics under which every normalisation is the identity."""
    low = {"min": -1.0, "q01": -1.0, "mean": 0.0}
    high = {"max": 1.0, "q99": 1.0, "std": 1.0}
    return {key: [value] * dim for key, value in {**low, **high}.items()}


def _global_statistics(group: dict[str, Any]) -> dict[str, Any]:
    """`{"default": {"global_min": [...], "stepwise_min": ...}}` of the published file -> `{"min": [...], ...}`."""
    group = group.get("default", group)
    names = [name for pair in NORMALIZATIONS.values() for name in pair]
    if "global_min" in group:
        return {name: group[f"global_{name}"] for name in names if f"global_{name}" in group}
    return group
