"""A policy and its processor as what executors plan with: an observation in, a chunk in the robot's units out."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing_imagewam import ImageWAMProcessor
from .chunks import ChunkPredictor, PreparedObservation
from .instruction_encoder import InstructionEncoder
from .noise import noise_generator
from .real_time_chunking import MAX_GUIDANCE, RealTimeChunking, Schedule, guidance_limit


@dataclass(frozen=True)
class Chunking:
    """How a new chunk is held to the running one; see `RealTimeChunking`.

    Attributes:
        overlap: None for all that is left.
        max_guidance: None for what the number of Euler steps allows, at most the paper's 10.
    """

    overlap: int | None = None
    schedule: Schedule = "exp"
    max_guidance: float | None = None


class Planner:
    """`Plan` of an executor, and `PlanAhead` of an `AsyncExecutor`.

    Words are encoded once per text, unless the text encoder sees the image. The noise of a chunk is drawn from (seed,
    robot, how many chunks were planned before): one seed gives one sequence of chunks, and a robot gets the same
    from a planner of its own as from a `BatchPlanner`. Threads that share a planner take turns.

    Args:
        num_inference_steps: Euler steps; the policy's config says how many by default.
        chunking: real-time chunking for chunks that are planned while another one is executed; None: none.
        seed, robot: whole numbers >= 0.
    """

    def __init__(
        self,
        policy: ImageWAMForActionPrediction,
        processor: ImageWAMProcessor,
        *,
        num_inference_steps: int | None = None,
        chunking: Chunking | None = None,
        seed: int = 0,
        robot: int = 0,
    ):
        self.chunking = chunking
        self.seed, self.robot = seed, robot
        self._chunks = ChunkPredictor(policy, processor, num_inference_steps)
        self._lock = threading.Lock()
        self._decisions = 0

    @property
    def policy(self) -> ImageWAMForActionPrediction:
        return self._chunks.policy

    @property
    def instructions(self) -> InstructionEncoder | None:
        """Embeddings by text; None where the text encoder sees the image."""
        return self._chunks.instructions

    def __call__(
        self, observation: Mapping[str, Any], left: np.ndarray | None = None, expected_delay: int = 0
    ) -> np.ndarray:
        """The next actions `[horizon, action_dim]`, the first for the moment of the observation.

        Args:
            observation: `images`, `instruction` and `state`, as the processor takes them for one moment; `embodiment`
                for another robot than the one that the processor faces.
            left: `[n, action_dim]`, the rows of the running chunk from this moment on.
            expected_delay: control steps that this plan is expected to take.
        """
        with self._lock:
            prepared = self._chunks.prepare(observation)
            generator = noise_generator(self.seed, self.robot, self._decisions)
            (chunk,) = self._chunks.predict([prepared], [generator], self._held_to(left, expected_delay, prepared))
            self._decisions += 1
            return chunk

    def examples(self, observations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Inputs of every length of instruction among the observations, for chunks that are held to others as well.

        `policy.compile_for_inference(*planner.examples(observations))` prepares the policy for all of them.
        """
        with self._lock:
            free = [self._chunks.inputs([one]) for one in self._chunks.by_shape(observations)]
        if self.chunking is None:
            return free
        config = self.policy.config
        previous = torch.zeros(1, config.action_horizon, config.action_dim, device=self.policy.device)
        return [*free, *({**inputs, "wrap_velocity": RealTimeChunking(previous, delay=0)} for inputs in free)]

    def _held_to(self, left: np.ndarray | None, delay: int, prepared: PreparedObservation) -> RealTimeChunking | None:
        if self.chunking is None or left is None:
            return None
        processor, count = prepared.processor, len(left)
        # The processor normalises whole chunks, and makes them relative to the state of now where the policy's are.
        whole = np.concatenate([left, np.repeat(left[-1:], processor.contract.horizon - count, axis=0)])
        previous = processor(state=prepared.state, actions=whole[None], return_tensors="pt")["actions"][:, :count]
        overlap = count if self.chunking.overlap is None else min(self.chunking.overlap, count)
        schedule, delay = self.chunking.schedule, min(delay, overlap)
        return RealTimeChunking(previous.to(self.policy.device), delay, overlap, schedule, self._max_guidance())

    def _max_guidance(self) -> float:
        if self.chunking.max_guidance is not None:
            return self.chunking.max_guidance
        config = self.policy.config
        num_steps = self._chunks.num_inference_steps or config.num_inference_steps
        return min(MAX_GUIDANCE, guidance_limit(num_steps, config.time_shift))
