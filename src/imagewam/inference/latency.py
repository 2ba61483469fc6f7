"""How long a decision takes, stage by stage: our way and the published code's, as they are, compiled, captured."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import published_way
from .compiled import PARTS, CompiledPolicy, capture_calls, compile_blocks
from .decision import Decision
from .static_calls import Capture, capture_cuda_graph

STAGES = ("text", "vae", "prefill", "actions", "transfer")


class Way(NamedTuple):
    """Whose way of deciding, and what was done to the networks before: `LEVELS`, one upon the other."""

    published: bool
    level: str


LEVELS = ("eager", "actions compiled", "compiled", "graphs")
WAYS = {
    "published": Way(True, "eager"),
    "published-compiled": Way(True, "compiled"),
    "published-graphs": Way(True, "graphs"),
    "ours": Way(False, "eager"),
    "actions-compiled": Way(False, "actions compiled"),
    "compiled": Way(False, "compiled"),
    "graphs": Way(False, "graphs"),
}


@dataclass
class Latency:
    """Seconds of repeated decisions.

    Attributes:
        stages: per stage the seconds of every repeat; a stage that a way has no need of took none.
        actions: `[B, H, action_dim]` of the last repeat, normalised.
        peak_memory: bytes that PyTorch had allocated at most, the networks among them; None on a CPU.
    """

    stages: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STAGES})
    actions: Tensor | None = None
    peak_memory: int | None = None

    def percentile(self, percent: float, stage: str | None = None) -> float:
        """Of one stage, or of whole decisions."""
        rows = [self.stages[stage]] if stage else list(self.stages.values())
        return float(np.percentile(np.sum(rows, axis=0), percent))


class Clock:
    """Times stages one after the other on a device that may lag behind the program."""

    def __init__(self, latency: Latency, device: torch.device):
        self.latency = latency
        self.synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def stage(self, name: str, run: Callable):
        self.synchronize()
        start = time.perf_counter()
        result = run()
        self.synchronize()
        self.latency.stages[name].append(time.perf_counter() - start)
        return result


class Ways:
    """One observation decided on in several ways, from the same noise.

    Args:
        num_steps: Euler steps of the actions.
    """

    def __init__(self, decision: Decision, num_steps: int, seed: int = 0):
        self.decision = decision
        self.num_steps = num_steps
        policy = decision.policy
        generator = torch.Generator().manual_seed(seed)
        config, batch_size = policy.config, len(decision.pixels)
        size = (batch_size, config.action_horizon, config.action_dim)
        self.noise = torch.randn(size, generator=generator).to(policy.device)
        rows, columns = policy.backbone.grid_of(decision.pixels)
        size = (batch_size, rows * columns * policy.backbone.num_target_frames, policy.backbone.latent_channels)
        self.image_noise = torch.randn(size, generator=generator).to(policy.device)
        self.camera = decision.pixels.cpu()
        self.words = None if policy.backbone.text_sees_image else decision.prompt_embeds

    def measure(self, way: str, latency: Latency) -> None:
        """Decide once more."""
        on_gpu = self.decision.policy.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        clock = Clock(latency, self.decision.policy.device)
        with torch.no_grad():
            latency.actions = self._published(clock) if WAYS[way].published else self._ours(clock)
        if on_gpu:
            latency.peak_memory = max(latency.peak_memory or 0, torch.cuda.max_memory_allocated())

    def _ours(self, clock: Clock) -> Tensor:
        decision, policy = self.decision, self.decision.policy
        pixels = clock.stage("transfer", lambda: self.camera.to(policy.device))
        words = clock.stage("text", self._words)
        latents, grid = clock.stage("vae", lambda: policy._call(policy.backbone.encode_image, pixels))
        observation = {"prompt_embeds": words, "image_latents": latents, "image_grid": grid, "state": decision.state}
        context = clock.stage("prefill", lambda: self._seen(policy.encode_context(**observation)))
        settings = {"context": context, "latents": self.noise, "num_inference_steps": self.num_steps}
        if policy.config.edit_mode == "joint":
            settings["image_noise"] = self.image_noise
        output = clock.stage("actions", lambda: policy.predict_action(**settings))
        return self._fetched(clock, output.actions)

    def _words(self) -> Tensor:
        decision = self.decision
        if self.words is not None:
            return self.words
        return decision.variant.read(decision.policy.backbone, decision.num_text_tokens, decision.pixels)

    def _seen(self, context):
        policy = self.decision.policy
        if policy.config.edit_mode not in ("denoise", "imagine"):
            return context
        return policy.encode_edit(context, image_noise=self.image_noise, num_inference_steps=self.num_steps)

    def _published(self, clock: Clock) -> Tensor:
        decision, policy = self.decision, self.decision.policy
        pixels = clock.stage("transfer", lambda: self.camera.to(policy.device))
        embeds, mask = clock.stage("text", lambda: published_way.read_padded(decision))
        latents, grid = clock.stage("vae", lambda: policy._call(policy.backbone.encode_image, pixels))
        inputs = decision, embeds, mask, latents, grid, self.image_noise
        seen = clock.stage("prefill", lambda: policy._call(published_way.encode_padded, *inputs))
        inputs = decision, seen, self.noise, self.num_steps
        actions = clock.stage("actions", lambda: policy._call(published_way.act, *inputs))
        return self._fetched(clock, actions)

    def _fetched(self, clock: Clock, actions: Tensor) -> Tensor:
        """The actions on the robot's side; both transfers count as one stage."""
        upload = clock.latency.stages["transfer"].pop()
        actions = clock.stage("transfer", actions.cpu)
        clock.latency.stages["transfer"][-1] += upload
        return actions


def raise_level(
    ways: Ways, level: str, report: CompiledPolicy, *, backend: str, mode: str | None, capture: Capture | None = None
) -> None:
    """Do to the networks what `level` adds to the one before.

    Args:
        backend, mode: of `torch.compile`.
        capture: of calls; CUDA graphs by default.
    """
    policy, decision = ways.decision.policy, ways.decision
    latents, grid = decision.image
    example = {"image_latents": latents, "image_grid": grid, "state": decision.state, "latents": ways.noise}
    example |= {"prompt_embeds": decision.prompt_embeds, "num_inference_steps": ways.num_steps}
    part = dict(zip(LEVELS[1:], PARTS, strict=False)).get(level)
    if part is not None:
        compile_blocks(policy, [example], report, part, backend, mode)
    elif level == "graphs" and capture is None and policy.device.type != "cuda":
        report.refuse("CUDA graphs", f"the policy is on {policy.device}")
    elif level == "graphs":
        capture_calls(policy, [example], report, capture or capture_cuda_graph)
    report.warm()


def measure_ways(ways: Ways, names: tuple[str, ...], repeats: int, warm_up: int = 1) -> dict[str, Latency]:
    """Every way once per repeat, so that all of them share what else the machine is doing."""
    for name in names * warm_up:
        ways.measure(name, Latency())
    latencies = {name: Latency() for name in names}  # what warming up took is no part of them
    for _ in range(repeats):
        for name in names:
            ways.measure(name, latencies[name])
    return latencies
