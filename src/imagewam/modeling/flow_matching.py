"""Flow matching: the path, its velocity, how times are drawn and weighted, and the Euler steps back.

Time runs from data (t = 0) to noise (t = 1) everywhere in this package.
"""

import copy
import functools
import math
from collections.abc import Callable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

# x_t `[B, N, D]` and times `[B]` -> ε - x as a network sees it, `[B, N, D]`.
Velocity = Callable[[Tensor, Tensor], Tensor]

# The bell of `loss_weight` is shifted to be 0 at both ends and divided by its mean over the 1000-point grid of
# shift-5 times, so that it averages to 1 over training.
_BELL_END = math.exp(-0.5)
_BELL_MEAN = 0.18949555


def interpolate(data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = (1 - t) x + t ε (paper, Eqs. 6 and 8).

    Args:
        data, noise: `[B, N, D]`.
        time: `[B]` in [0, 1].
    """
    time = time[:, None, None]
    return (1 - time) * data + time * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """dx_t/dt = ε - x, what the networks are trained to predict (paper, Eqs. 7 and 9)."""
    return noise - data


def shift_time(time: Tensor, shift: float) -> Tensor:
    """t = s u / (1 + (s - 1) u): uniform u pushed towards noise for shift s > 1."""
    return shift * time / (1 + (shift - 1) * time)


def sample_time(
    batch_size: int, shift: float, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Tensor:
    """`[B]` float32 times in [0, 1): u uniform, then `shift_time`."""
    uniform = torch.rand(batch_size, device=device, generator=generator)
    return shift_time(uniform, shift)


def loss_weight(time: Tensor, weighting: str) -> Tensor:
    """w(t) of every sample's loss.

    Args:
        time: `[B]`.
        weighting: "none": 1 (the paper's equations). "bell": (exp(-2 (t - 1/2)²) - e^(-1/2)) / 0.1895, zero at both
            ends and 2.08 in the middle (the published training code).
    """
    if weighting == "none":
        return torch.ones_like(time)
    return (torch.exp(-2 * (time - 0.5) ** 2) - _BELL_END) / _BELL_MEAN


def flow_matching_loss(
    prediction: Tensor, target: Tensor, weight: Tensor, is_pad: Tensor | None = None, dim_is_pad: Tensor | None = None
) -> Tensor:
    """mean over samples of w_b · MSE_b, in float32 (paper, Eqs. 7 and 9).

    Args:
        prediction, target: `[B, N, D]`.
        weight: `[B]`.
        is_pad: `[B, N]` bool, True where a step is past the end of its episode and does not count.
        dim_is_pad: `[B, D]` bool, True where an embodiment has no such action dimension.
    """
    error = (prediction.float() - target.float()) ** 2
    error = _masked_mean(error, None if dim_is_pad is None else ~dim_is_pad.bool()[:, None, :].expand_as(error))
    error = _masked_mean(error, None if is_pad is None else ~is_pad.bool())
    return (weight * error).mean()


def _masked_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the last axis of the valid entries; 0 where there are none."""
    if valid is None:
        return values.mean(-1)
    return (values * valid).sum(-1) / valid.sum(-1).clamp(min=1)


@functools.cache
@torch.inference_mode(False)
def _euler_schedule(
    num_steps: int, shift: float, device: torch.device, dtype: torch.dtype
) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    sigmas = torch.linspace(1, 1 / num_steps, num_steps, dtype=torch.float64)
    scheduler.set_timesteps(sigmas=sigmas.tolist(), device=device)
    scheduler.set_begin_index(0)
    if dtype != torch.float32:
        steps = scheduler.sigmas.diff().to(dtype).float()
        scheduler.timesteps = scheduler.timesteps.to(dtype).float()
        scheduler.sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[0] + steps.cumsum(0)])
    return scheduler


def euler_schedule(
    num_steps: int, shift: float, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler set to `num_steps` Euler steps from t = 1 to t = 0, uniform before the shift.

    `scheduler.sigmas[:-1]` are the times, `scheduler.step(velocity, t, x)` makes a step.

    Args:
        dtype: bfloat16 rounds times and step sizes as the published code does; they then sum to 0.99976 for 10 steps.
    """
    # Times lie on the device from the first call on: a later one neither copies nor waits.
    return copy.copy(_euler_schedule(num_steps, shift, torch.device(device), dtype))
