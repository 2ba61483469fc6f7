"""Episodes of a simulator's scripted experts, recorded through workers and written as a LeRobot dataset."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from tqdm.auto import tqdm

from ..data.features import CAMERA_PREFIX
from ..data.lerobot_dataset import ACTION_KEY, STATE_KEY
from ..data.writer import LeRobotWriter
from .env_worker import EnvWorker
from .environment import EnvironmentSpec, Observation
from .intervals import SuccessRate
from .recorded_episodes import write_recorded_episodes


@dataclass
class ExpertEpisode:
    """One solved task: what was seen before each action, and the action. T is the number of actions.

    images: uint8 [T, height, width, 3] per camera. state: float32 [T, state_dim]. actions: float32 [T, action_dim].
    """

    task: str
    seed: int
    instruction: str
    images: dict[str, np.ndarray]
    state: np.ndarray
    actions: np.ndarray

    @classmethod
    def from_steps(cls, observations: Sequence[Observation], actions: Sequence[np.ndarray]) -> "ExpertEpisode":
        first = observations[0]
        images = {name: np.stack([seen.images[name] for seen in observations]) for name in first.images}
        state = np.stack([seen.state for seen in observations])
        return cls(first.task, first.seed, first.instruction, images, state, np.stack(actions))

    @property
    def frames(self) -> dict[str, np.ndarray]:
        """The episode under LeRobot's feature keys."""
        images = {f"{CAMERA_PREFIX}{name}": frames for name, frames in self.images.items()}
        return {**images, STATE_KEY: self.state, ACTION_KEY: self.actions}


@dataclass
class Recording:
    """What a recording session brought: (task, seed) of the episodes kept and of those in which the expert failed."""

    kept: list[tuple[str, int]] = field(default_factory=list)
    rejected: list[tuple[str, int]] = field(default_factory=list)

    def note(self, task: str, seed: int, solved: bool) -> None:
        (self.kept if solved else self.rejected).append((task, seed))

    def success_rates(self) -> dict[str, SuccessRate]:
        """Of the expert, per task in the order in which they were played."""
        tasks = dict.fromkeys(task for task, _ in [*self.kept, *self.rejected])
        return {
            task: SuccessRate.of(
                [True for name, _ in self.kept if name == task] + [False for name, _ in self.rejected if name == task]
            )
            for task in tasks
        }


def record_episode(worker: EnvWorker, task: str, seed: int, step_limit: int) -> ExpertEpisode | None:
    """Let the expert play; None if it has not solved the task after `step_limit` actions."""
    observations, actions = [worker.reset(task, seed)], []
    for _ in range(step_limit):
        actions.append(worker.expert_action())
        result = worker.step(actions[-1][None])
        if result.success:
            return ExpertEpisode.from_steps(observations, actions)
        observations.append(result.observation)
    return None


def expert_episodes(
    workers: Sequence[EnvWorker],
    task: str,
    count: int,
    recording: Recording,
    *,
    first_seed: int = 1000,
    step_limit: int = 300,
) -> Iterator[ExpertEpisode]:
    """The first `count` successes in the order of the seeds, whatever the number of workers; notes both kinds of ends.

    Raises:
        RuntimeError: once the expert has failed more often than `count` times.
    """
    play = _player(workers, task, step_limit)
    with ThreadPoolExecutor(len(workers)) as pool:
        seeds, running, missing = itertools.count(first_seed), deque(), count
        while missing:
            while len(running) < min(len(workers), missing):
                seed = next(seeds)
                running.append((seed, pool.submit(play, seed)))
            seed, future = running.popleft()
            episode = future.result()
            recording.note(task, seed, episode is not None)
            if episode is not None:
                missing -= 1
                yield episode
            elif sum(name == task for name, _ in recording.rejected) > count:
                raise RuntimeError(f"the expert of {task} failed {count + 1} times, solved it {count - missing} times")


def measure_experts(
    workers: Sequence[EnvWorker], tasks: Sequence[str], episodes_per_task: int, *, first_seed: int, step_limit: int
) -> Recording:
    """Let the experts play exactly `episodes_per_task` seeds of each task, and only count."""
    recording, seeds = Recording(), range(first_seed, first_seed + episodes_per_task)
    with (
        ThreadPoolExecutor(len(workers)) as pool,
        tqdm(total=len(tasks) * episodes_per_task, desc="playing", unit="episode") as progress,
    ):
        for task in tasks:
            played = pool.map(_player(workers, task, step_limit), seeds)
            for seed, episode in zip(seeds, played, strict=True):
                recording.note(task, seed, episode is not None)
                progress.update()
                progress.set_postfix(task=task, rejected=len(recording.rejected))
    return recording


def _player(workers: Sequence[EnvWorker], task: str, step_limit: int) -> Callable[[int], ExpertEpisode | None]:
    """Plays a seed on whichever worker is idle; as many calls at once as there are workers."""
    idle = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def play(seed: int) -> ExpertEpisode | None:
        worker = idle.get()
        try:
            return record_episode(worker, task, seed, step_limit)
        finally:
            idle.put(worker)

    return play


def dataset_features(spec: EnvironmentSpec) -> dict[str, dict]:
    """The LeRobot features of a dataset recorded in an environment."""

    def vector(names: tuple[str, ...]) -> dict:
        return {"dtype": "float32", "shape": (len(names),), "names": list(names)}

    cameras = {
        f"{CAMERA_PREFIX}{name}": {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]}
        for name, size in spec.camera_sizes.items()
    }
    return {**cameras, STATE_KEY: vector(spec.state_names), ACTION_KEY: vector(spec.action_names)}


def record_dataset(
    root: str | Path,
    workers: Sequence[EnvWorker],
    tasks: Sequence[str],
    episodes_per_task: int | Mapping[str, int],
    *,
    first_seed: int = 1000,
    step_limit: int = 300,
) -> Recording:
    """Record `episodes_per_task` successes of each task, or those of its own, into a new LeRobot v3.0 dataset."""
    counts = episodes_per_task if isinstance(episodes_per_task, Mapping) else dict.fromkeys(tasks, episodes_per_task)
    spec, recording = workers[0].describe(), Recording()
    with (
        LeRobotWriter(root, fps=spec.fps, robot_type=spec.robot_type, features=dataset_features(spec)) as writer,
        tqdm(total=sum(counts[task] for task in tasks), desc="recording", unit="episode") as progress,
    ):
        for task in tasks:
            for episode in expert_episodes(
                workers, task, counts[task], recording, first_seed=first_seed, step_limit=step_limit
            ):
                writer.add_episode(episode.frames, episode.instruction)
                progress.update()
                progress.set_postfix(task=task, rejected=len(recording.rejected))
    write_recorded_episodes(root, spec.robot_type, recording.kept)
    return recording
