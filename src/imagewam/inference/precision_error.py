"""What lower precision costs and saves: actions beside those of float32 from the same noise, and bytes of weights."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from .quantized import quantize_weights, weight_bytes

# The inputs of `predict_action`, as this policy's own frozen parts make them.
Observe = Callable[[ImageWAMForActionPrediction], dict[str, Any]]


class Precision(NamedTuple):
    """Of the weights of the editing transformer's blocks, and of everything else, all products included."""

    blocks: str
    rest: str


@dataclass(frozen=True)
class PrecisionError:
    """One policy in one precision.

    Attributes:
        relative: norm of the difference to the actions of float32, divided by the norm of those.
        largest: of the differences, in normalised units.
        editing, expert, frozen: bytes of the editing transformer, of action expert and state encoder, and of VAE and
            text encoder.
    """

    precision: Precision
    relative: float
    largest: float
    editing: int
    expert: int
    frozen: int


@torch.no_grad()
def measure_precisions(
    policy: ImageWAMForActionPrediction, observe: Observe, precisions: Sequence[Precision], seed: int = 0
) -> Iterator[PrecisionError]:
    """A row per precision, as they are measured.

    Args:
        policy: in float32; it stays as it is.
        observe: of one observation or a batch of them.
        precisions: blocks in a dtype of torch, then the same as the rest, or as `quantize_weights` names them.
        seed: of the noise, the same for all.

    Raises:
        ValueError: the policy is not in float32.
    """
    if policy.dtype != torch.float32:
        raise ValueError(f"errors are measured against float32, got a policy in {policy.dtype}")
    expected = _decide(policy, observe, seed)
    for precision in precisions:
        small = in_precision(policy, precision)
        found = _decide(small, observe, seed)
        editing = weight_bytes(small.backbone.transformer)
        yield PrecisionError(
            precision,
            relative=((found - expected).norm() / expected.norm()).item(),
            largest=(found - expected).abs().max().item(),
            editing=editing,
            expert=weight_bytes(small) - editing,
            frozen=sum(map(weight_bytes, small.backbone.frozen.values())),
        )


def in_precision(policy: ImageWAMForActionPrediction, precision: Precision) -> ImageWAMForActionPrediction:
    """A copy of the policy, frozen parts included."""
    small = copy.deepcopy(policy).to(getattr(torch, precision.rest))
    return small if precision.blocks == precision.rest else quantize_weights(small, precision.blocks)


def _decide(policy: ImageWAMForActionPrediction, observe: Observe, seed: int) -> Tensor:
    """`[B, H, action_dim]` in float64; the noise is drawn on the CPU, the same in every precision."""
    return policy.predict_action(**observe(policy), generator=torch.Generator().manual_seed(seed)).actions.double()
