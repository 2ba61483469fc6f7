"""Weight-copy initialisation: action layer i starts as editing layer i, resized to the action expert's width.

The expert carries diffusers' parameter names, so the source of a parameter is the editing parameter of the same name.
"""

import torch
from torch import Tensor, nn

from .action_expert import ActionExpert

# Stay fresh: they know actions, not images.
_FRESH = ("action_encoder.", "norm_out.", "proj_out.")


@torch.no_grad()
def copy_editing_weights(expert: ActionExpert, transformer: nn.Module, *, per_segment: bool = True) -> list[str]:
    """Initialise `expert` from an editing transformer with FLUX.2's parameter names (paper, appendix 5.1).

    Every axis is resized by align-corners linear interpolation; where the input width changed, the weight is
    multiplied by sqrt(old width / new width), which keeps the scale of the output.

    Args:
        per_segment: resize q, k, v, the two MLP halves and every modulation vector on their own. False resizes fused
            tensors as one axis, as the published script does, which smears these parts of single blocks together.

    Returns:
        names of the parameters that were copied.
    """
    source = dict(transformer.named_parameters())
    copied = []
    for name, parameter in expert.named_parameters():
        if name.startswith(_FRESH):
            continue
        if name not in source:
            raise KeyError(f"the editing transformer has no {name} to initialise the action expert from")
        segments = _segments(expert, transformer, name) if per_segment else None
        parameter.copy_(resize_weight(source[name], tuple(parameter.shape), segments))
        copied.append(name)
    return copied


def resize_weight(weight: Tensor, shape: tuple[int, ...], segments: "Segments | None" = None) -> Tensor:
    """`weight` resized to `shape`, in float32.

    Args:
        segments: per axis, the (source, target) lengths of parts that are resized on their own; whole axes if None.
    """
    if tuple(weight.shape) == shape:
        return weight.float()
    resized = weight.float()
    for axis, length in enumerate(shape):
        parts = segments[axis] if segments else [(weight.shape[axis], length)]
        if (sum(a for a, _ in parts), sum(b for _, b in parts)) != (weight.shape[axis], length):
            raise ValueError(f"segments {parts} do not tile axis {axis} of {tuple(weight.shape)} -> {shape}")
        chunks = resized.split([a for a, _ in parts], dim=axis)
        resized = torch.cat([_interpolate(c, axis, b) for c, (_, b) in zip(chunks, parts, strict=True)], dim=axis)
    resized = resized.to(weight.dtype).float()  # released checkpoints started from bf16-rounded values
    if len(shape) > 1 and weight.shape[-1] != shape[-1]:
        resized = resized * (weight.shape[-1] / shape[-1]) ** 0.5
    return resized


def _interpolate(weight: Tensor, axis: int, length: int) -> Tensor:
    """Align-corners linear interpolation along one axis: entry j reads source position j (n - 1) / (length - 1)."""
    if weight.shape[axis] == length:
        return weight
    rows = weight.movedim(axis, -1)
    flat = rows.reshape(1, -1, rows.shape[-1])
    flat = nn.functional.interpolate(flat, size=length, mode="linear", align_corners=True)
    return flat.reshape(*rows.shape[:-1], length).movedim(-1, axis)


Segments = list[list[tuple[int, int]]]


def _segments(expert: ActionExpert, transformer: nn.Module, name: str) -> Segments | None:
    """(source, target) lengths of the parts that are fused in the parameter `name`, per axis."""
    old, new = transformer.get_parameter(name).shape, expert.get_parameter(name).shape
    whole = [[(a, b)] for a, b in zip(old, new, strict=True)]
    module_name, _, _ = name.rpartition(".")
    parent = module_name.rpartition(".")[0]
    if name.endswith("to_qkv_mlp_proj.weight"):
        attention, mlp = _single_widths(expert, parent), _mlp_widths(expert, transformer, parent)
        return [[(w, w) for w in attention] + [mlp, mlp], whole[1]]
    if name.startswith("single_transformer_blocks.") and name.endswith("to_out.weight"):
        query = _single_widths(expert, parent)[0]
        return [whole[0], [(query, query), _mlp_widths(expert, transformer, parent)]]
    if name.endswith("ff.linear_in.weight"):
        return [[(old[0] // 2, new[0] // 2)] * 2, whole[1]]
    if "_modulation" in name:
        parts = old[0] // old[1]
        return [[(old[1], new[1])] * parts, whole[1]]
    return whole


def _single_widths(expert: ActionExpert, attention_name: str) -> tuple[int, int, int]:
    return expert.get_submodule(attention_name).widths


def _mlp_widths(expert: ActionExpert, transformer: nn.Module, attention_name: str) -> tuple[int, int]:
    old, new = (m.get_submodule(attention_name).mlp_hidden_dim for m in (transformer, expert))
    return old, new
