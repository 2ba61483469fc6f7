"""Weight-copy initialisation: action layer i starts as editing layer i, resized to the action expert's width."""

import torch
from torch import Tensor, nn

from .action_expert import ActionExpert
from .action_expert.base import Segments


@torch.no_grad()
def copy_editing_weights(expert: ActionExpert, transformer: nn.Module, *, per_segment: bool = True) -> list[str]:
    """Initialise `expert` from the editing transformer whose keys it attends to (paper, appendix 5.1).

    Every axis is resized by align-corners linear interpolation; where the input width changed, and the expert's form
    asks for it, the weight is multiplied by sqrt(old width / new width), which keeps the scale of the output.

    Args:
        per_segment: resize q, k, v, the two MLP halves and every modulation vector on their own. False resizes fused
            tensors as one axis, as the published script does, which smears these parts of single blocks together.

    Returns:
        names of the parameters that were copied.
    """
    source = dict(transformer.named_parameters())
    copied = []
    for name, parameter in expert.named_parameters():
        origin = expert.source_of(name)
        if origin is None:
            continue
        if origin not in source:
            raise KeyError(f"the editing transformer has no {origin} to initialise the action expert's {name} from")
        segments = expert.segments(name, source[origin].shape) if per_segment else None
        rescale = expert.rescale_weights and not name.endswith(expert.unscaled_weights)
        weight = resize_weight(source[origin], tuple(parameter.shape), segments, rescale=rescale)
        parameter.copy_(weight)
        copied.append(name)
    return copied


def resize_weight(
    weight: Tensor, shape: tuple[int, ...], segments: Segments | None = None, *, rescale: bool = True
) -> Tensor:
    """`weight` resized to `shape`, in float32.

    Args:
        segments: per axis, the (source, target) lengths of parts that are resized on their own; whole axes if None.
        rescale: multiply by sqrt(old / new input width).
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
    if rescale and len(shape) > 1 and weight.shape[-1] != shape[-1]:
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
