"""How fast a run trains: samples and steps per second, and the share of the GPUs' arithmetic that it uses (MFU)."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Dense bfloat16 TFLOP/s with float32 accumulation, from the makers' data sheets. Longer names stand before their
# beginnings.
PEAK_TFLOPS = {
    "GB200": 2500,
    "B200": 2250,
    "GH200": 989,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800": 989,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 6000 Ada": 364,
    "RTX A6000": 155,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "A10G": 70,
    "A10": 125,
}


def peak_tflops(device: torch.device) -> float | None:
    """Of a known GPU, by its name; None for others and for the CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


@torch.enable_grad()  # without gradients a pass may end early
def training_flops(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Operations of one micro-batch, forward and backward, in the networks that are trained; a multiply-add is two.

    Counted over one forward pass of these inputs. The backward pass takes twice the operations of the forward, or as
    many in an editing transformer that only passes gradients on to adapters. Frozen parts and recomputed activations
    do not count.

    Args:
        model: the policy, or a `PeftModel` around it.
    """
    passes = {
        "backbone.transformer": 2 if hasattr(model, "peft_config") else 3,
        "action_expert": 3,
        "state_encoder": 3,
    }
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    parts = {policy_part: 0 for policy_part in passes}
    for name, operations in counter.get_flop_counts().items():
        for part in passes:
            if name.endswith(f".{part}"):
                parts[part] += sum(operations.values())
    return sum(passes[part] * flops for part, flops in parts.items())


class ThroughputMeter:
    """Speed over the steps since it was last read, without the time of evaluations and checkpoints.

    Args:
        samples_per_step: of all processes.
        peak_flops: operations per second of all devices; None: no MFU.
    """

    def __init__(self, samples_per_step: int, peak_flops: float | None = None):
        self.samples_per_step, self.peak_flops = samples_per_step, peak_flops
        self.step_flops: int | None = None  # of all processes
        self._restart(0)

    def _restart(self, step: int) -> None:
        self._step, self._since, self._paused = step, time.perf_counter(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def start(self, step: int) -> None:
        """Count from this step on."""
        self._restart(step)

    def read(self, step: int) -> dict[str, float]:
        """`steps_per_second`, `samples_per_second` and, where it is known, `mfu`; counting starts anew."""
        steps, seconds = step - self._step, time.perf_counter() - self._since - self._paused
        self._restart(step)
        speed = {"steps_per_second": steps / seconds, "samples_per_second": steps * self.samples_per_step / seconds}
        if self.peak_flops and self.step_flops:
            speed["mfu"] = steps * self.step_flops / seconds / self.peak_flops
        return speed
