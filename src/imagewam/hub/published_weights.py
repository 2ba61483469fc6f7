"""Weights of other projects' checkpoints: nothing is missing, left over or of another shape."""

from collections.abc import Callable, Mapping

from torch import Size, Tensor

Weights = dict[str, Tensor]


def check_values(weights: Mapping[str, object]) -> None:
    """Make sure that every weight is a floating point tensor without NaN and infinity.

    Raises:
        ValueError: lists those that are not, by name.
    """
    problems = [f"{name}: {problem}" for name, weight in weights.items() if (problem := _problem(weight))]
    if problems:
        raise ValueError("\n  ".join(["these weights cannot be used:", *problems]))


def _problem(weight: object) -> str | None:
    if not isinstance(weight, Tensor):
        return f"expected a tensor, got a {type(weight).__name__}"
    if not weight.is_floating_point():
        return f"expected floating point numbers, got {str(weight.dtype).removeprefix('torch.')}"
    if not weight.is_meta and not weight.isfinite().all():
        return f"{(~weight.isfinite()).sum():,} of {weight.numel():,} numbers are not finite"
    return None


def check_coverage(expected: Mapping[str, Size], found: Weights, name_of: Callable[[str], str] = str) -> None:
    """Make sure that `found` are exactly the expected weights.

    Args:
        name_of: how the error calls a weight.

    Raises:
        ValueError: lists what is missing, what is left over, and what has another shape, with both shapes.
    """
    missing = [name_of(name) for name in sorted(expected.keys() - found.keys())]
    left_over = [name_of(name) for name in sorted(found.keys() - expected.keys())]
    shapes = [
        f"{name_of(name)}: expected {list(expected[name])}, got {list(found[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name]
    ]
    if missing or left_over or shapes:
        lines = [f"missing: {missing}", f"left over: {left_over}", *shapes]
        raise ValueError("\n  ".join(["these are not the weights of this network:", *lines]))


def size_of(weights: Weights, name: str, ndim: int = 2, name_of: Callable[[str], str] = str) -> Size:
    """Shape of the weight `name`, from which sizes of a network are read.

    Args:
        name_of: how the error calls the weight.

    Raises:
        ValueError: it is not there, or has not `ndim` dimensions.
    """
    if name not in weights:
        raise ValueError(f"it lacks {name_of(name)}")
    if weights[name].ndim != ndim:
        raise ValueError(f"{name_of(name)}: expected {ndim} dimensions, got {list(weights[name].shape)}")
    return weights[name].shape


def count_blocks(weights: Weights, prefix: str) -> int:
    """Number of the blocks `prefix.0`, `prefix.1`, ..."""
    names = (name.removeprefix(f"{prefix}.") for name in weights if name.startswith(f"{prefix}."))
    return 1 + max((int(name.split(".")[0]) for name in names), default=-1)


def own_storage(tensor: Tensor) -> Tensor:
    """A copy of what is a view of a larger tensor: kernels may round differently on a view than on a loaded copy."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
