"""What a device can do at most, and how much of it a stage of a decision makes use of (roofline model).

Williams et al. 2009: a stage takes at least its operations over the device's rate, and at least its bytes over the
device's bandwidth. Both ceilings are measured, on the same device and in the same dtype as the stages.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .cost import DecisionCost

_REPEATS = 10


@dataclass(frozen=True)
class Ceilings:
    """Measured: a large matrix product, and a copy that no cache holds.

    Attributes:
        operations: per second; a multiply-add is two.
        bandwidth: bytes read and written per second.
    """

    operations: float
    bandwidth: float

    def highest(self, other: "Ceilings") -> "Ceilings":
        """Of two measurements: what other programs took away is no limit of the device."""
        return Ceilings(max(self.operations, other.operations), max(self.bandwidth, other.bandwidth))


@dataclass(frozen=True)
class StageWork:
    """What a stage cannot do without.

    Attributes:
        operations: a multiply-add is two.
        moved: bytes of the weights, read once per pass, and of the keys and values, written or read once per pass.
            Activations are left out, so this is a lower bound.
    """

    operations: int
    moved: int

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds that the stage takes at least."""
        return max(self.operations / ceilings.operations, self.moved / ceilings.bandwidth)

    def is_compute_bound(self, ceilings: Ceilings) -> bool:
        return self.operations / ceilings.operations >= self.moved / ceilings.bandwidth


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of a few runs of each."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return Ceilings(
        operations=2 * size**3 / _fastest(lambda: torch.mm(a, b, out=product), device),
        bandwidth=2 * source.nbytes / _fastest(lambda: target.copy_(source), device),
    )


def work_of_stages(
    cost: DecisionCost, weights: dict[str, int], dtype: torch.dtype, num_steps: int, batch_size: int
) -> dict[str, StageWork]:
    """Stage of a latency -> its work, for a decision whose instruction is at hand.

    Args:
        weights: bytes of "editing", "expert" and "vae" (its encoder).
    """
    cache = cost.cache_bytes * dtype.itemsize // torch.bfloat16.itemsize * batch_size
    denoises_beside = cost.edit_mode == "joint"
    passes = 1 + (cost.target_keys > 0) + (num_steps if cost.edit_mode == "imagine" else 0)
    prefill = cost.context + cost.target_keys + (num_steps * cost.edit if cost.edit_mode == "imagine" else 0)
    step = cost.action_step + (cost.edit if denoises_beside else 0)
    step_weights = weights["expert"] + (weights["editing"] if denoises_beside else 0)
    return {
        "vae": StageWork(cost.vae * batch_size, weights["vae"]),
        "prefill": StageWork(prefill * batch_size, passes * weights["editing"] + cache),
        "actions": StageWork(num_steps * step * batch_size, num_steps * (step_weights + cache)),
    }


def _fastest(run: Callable, device: torch.device) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(_REPEATS + 1):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
