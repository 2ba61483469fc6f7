"""Closed loop: a policy sees, plans a chunk of actions, executes the first few of them, and sees again."""

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..atomic import atomic_write_text
from .env_worker import EnvWorker
from .environment import Observation
from .intervals import SuccessRate

# Observations of any number of episodes -> one chunk of actions [horizon, action_dim] in physical units for each.
Predict = Callable[[list[Observation]], Sequence[np.ndarray]]


class Episode(NamedTuple):
    """What is to be played: a task from the start position that belongs to a seed."""

    task: str
    seed: int


@dataclass
class EpisodeRecord:
    """How an episode went. steps: actions executed, up to success or the limit."""

    task: str
    seed: int
    instruction: str
    success: bool
    steps: int


@dataclass
class Trace:
    """Pictures of an episode: what the policy saw each time it planned, and a film frame per action."""

    observations: list[Observation] = field(default_factory=list)
    film: list[np.ndarray] = field(default_factory=list)


@dataclass
class Rollouts:
    """Records in the order in which the episodes were asked for, and the traces of the chosen ones."""

    records: list[EpisodeRecord]
    traces: dict[Episode, Trace]

    def trace(self, record: EpisodeRecord) -> Trace:
        """The pictures of a recorded episode, if it was chosen to be traced."""
        return self.traces[Episode(record.task, record.seed)]

    def success_rate(self, task: str | None = None) -> SuccessRate:
        """Of one task, or of all episodes together."""
        return SuccessRate.of(record.success for record in self.records if task in (None, record.task))

    def save(self, path: str | Path, settings: dict[str, Any]) -> None:
        """Write success rates, `settings` and every episode as JSON, all or nothing."""
        tasks = dict.fromkeys(record.task for record in self.records)
        results = {
            "settings": settings,
            "overall": self.success_rate().to_dict(),
            "tasks": {task: self.success_rate(task).to_dict() for task in tasks},
            "episodes": [asdict(record) for record in self.records],
        }
        atomic_write_text(path, json.dumps(results, indent=2) + "\n")


@dataclass
class _Running:
    """An episode in progress on one worker."""

    worker: EnvWorker
    episode: Episode
    observation: Observation
    trace: Trace | None

    def send(self, actions: np.ndarray) -> None:
        if self.trace is not None:
            self.trace.observations.append(self.observation)
        self.worker.send("step", actions, self.trace is not None)

    def receive(self, step_limit: int) -> EpisodeRecord | None:
        """Take the outcome of `send`; a record once the episode is over."""
        result = self.worker.receive()
        self.observation = seen = result.observation
        if self.trace is not None:
            self.trace.film.extend(result.film)
        if result.success or seen.step >= step_limit:
            return EpisodeRecord(seen.task, seen.seed, seen.instruction, result.success, seen.step)
        return None


def run_rollouts(
    predict: Predict,
    workers: Sequence[EnvWorker],
    episodes: Iterable[Episode],
    *,
    replan_steps: int,
    step_limit: int,
    traced: Collection[Episode] = (),
) -> Rollouts:
    """Play `episodes` on all workers at once; the policy plans for every running episode in one batch.

    Args:
        replan_steps: how many actions of each chunk are executed before the policy looks again.
        step_limit: actions after which an episode counts as failed.
        traced: the episodes to keep pictures of.

    Raises:
        ValueError: when `predict` gives too few chunks, or chunks shorter than `replan_steps`.
        EnvWorkerError: when a simulator fails.
    """
    episodes = [Episode(*episode) for episode in episodes]
    waiting, idle, running = deque(episodes), deque(workers), []
    records: dict[Episode, EpisodeRecord] = {}
    traces = {episode: Trace() for episode in episodes if episode in traced}
    with tqdm(total=len(episodes), desc="rollouts", unit="episode") as progress:
        while waiting or running:
            running += _start(waiting, idle, traces)
            chunks = _checked_chunks(predict([run.observation for run in running]), len(running), replan_steps)
            for run, chunk in zip(running, chunks, strict=True):
                run.send(chunk[: min(replan_steps, step_limit - run.observation.step)])
            still_running = []
            for run in running:
                record = run.receive(step_limit)
                if record is None:
                    still_running.append(run)
                    continue
                idle.append(run.worker)
                records[run.episode] = record
                progress.update()
                progress.set_postfix_str(f"success {SuccessRate.of(record.success for record in records.values())}")
            running = still_running
    return Rollouts([records[episode] for episode in episodes], traces)


def _start(waiting: deque[Episode], idle: deque[EnvWorker], traces: dict[Episode, Trace]) -> list[_Running]:
    """Reset idle workers, all at the same time, to the episodes that wait."""
    pairs = [(idle.popleft(), waiting.popleft()) for _ in range(min(len(idle), len(waiting)))]
    for worker, episode in pairs:
        worker.send("reset", *episode)
    return [_Running(worker, episode, worker.receive(), traces.get(episode)) for worker, episode in pairs]


def _checked_chunks(chunks: Sequence[np.ndarray], count: int, replan_steps: int) -> list[np.ndarray]:
    chunks = [np.asarray(chunk, dtype=np.float32) for chunk in chunks]
    if len(chunks) != count:
        raise ValueError(f"the policy was asked for {count} action chunks and gave {len(chunks)}")
    shortest = min(map(len, chunks))
    if shortest < replan_steps:
        raise ValueError(f"replan_steps is {replan_steps}, but the policy gave a chunk of {shortest} actions")
    return chunks
