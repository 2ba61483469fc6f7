"""Exact statistics of states and actions, for the processor's normalisation."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from tqdm.auto import tqdm

from .lerobot_dataset import ACTION_KEY, STATE_KEY, LeRobotDataset

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
MEASURES = {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}


def compute_statistics(
    dataset: LeRobotDataset, horizon: int, relative_to_state: Sequence[int | None] | None = None
) -> dict[str, dict]:
    """
    min, max, mean, std (population), q01, q99 per dimension, and the number of frames, over the chosen episodes.

    Args:
        horizon: length of an action chunk.
        relative_to_state: per action dimension the state dimension that is subtracted from it, or None. Statistics of
            such a dimension are those of a[t+k] - s[t] over all frames t and steps k < horizon inside the episode.

    Returns:
        {"state": {"min": [...], ..., "count": frames}, "action": {...}}, plain lists of floats in physical units.

    Raises:
        ValueError: NaN or infinity in the data, or `relative_to_state` does not fit the dataset.
    """
    states, actions, remaining = _read(dataset)
    relative = relative_to_state or (None,) * actions.shape[1]
    _check_relative(relative, actions.shape[1], states.shape[1])
    columns = {"state": iter(states.T), "action": _action_columns(states, actions, remaining, relative, horizon)}
    dimensions = states.shape[1] + actions.shape[1]
    with tqdm(total=dimensions, desc="Computing statistics", unit="dimension", delay=2) as progress:
        return {
            name: describe(_counted(values, progress), ("q01", "q99")) | {"count": len(states)}
            for name, values in columns.items()
        }


def describe(columns: Iterable[np.ndarray], quantiles: Iterable[str] = QUANTILES) -> dict[str, list[float]]:
    """min, max, mean, std and the named `QUANTILES` of each column of values, accumulated in float64.

    One column is held at a time, so an iterator over many long ones needs the memory of one.
    """
    measures = MEASURES | {name: partial(np.quantile, q=QUANTILES[name]) for name in quantiles}
    summary: dict[str, list[float]] = {name: [] for name in measures}
    for column in columns:
        column = np.asarray(column, dtype=np.float64)
        for name, measure in measures.items():
            summary[name].append(float(measure(column)))
    return summary


def _counted(columns: Iterable[np.ndarray], progress: tqdm) -> Iterator[np.ndarray]:
    for column in columns:
        yield column
        progress.update()


def _read(dataset: LeRobotDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States [N, Ds], actions [N, Da], and for each of the N frames how many its episode has left, itself included."""
    lengths = dataset.episode_lengths
    episodes = tqdm(lengths, desc="Reading states and actions", unit="episode", delay=2)
    rows = [(dataset.values(STATE_KEY, episode), dataset.values(ACTION_KEY, episode)) for episode in episodes]
    states, actions = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return states, actions, np.concatenate([np.arange(length, 0, -1) for length in lengths.values()])


def _action_columns(
    states: np.ndarray, actions: np.ndarray, remaining: np.ndarray, relative: Sequence[int | None], horizon: int
) -> Iterator[np.ndarray]:
    """Per action dimension the values to describe, made only when asked for: differences are `horizon` times as many
    as frames."""
    for action, state in zip(actions.T, relative, strict=True):
        yield action if state is None else _differences(action, states[:, state], remaining, horizon)


def _differences(action: np.ndarray, state: np.ndarray, remaining: np.ndarray, horizon: int) -> np.ndarray:
    """a[t+k] - s[t] for all frames t and steps k < horizon that lie in the same episode, [number of such pairs]."""
    frames_by_step = [np.flatnonzero(remaining > step) for step in range(horizon)]
    return np.concatenate([action[frames + step] - state[frames] for step, frames in enumerate(frames_by_step)])


def _check_relative(relative_to_state: Sequence[int | None], action_dim: int, state_dim: int) -> None:
    if len(relative_to_state) != action_dim:
        raise ValueError(f"relative_to_state names {len(relative_to_state)} dimensions, the actions have {action_dim}")
    if unknown := [i for i in relative_to_state if i is not None and not 0 <= i < state_dim]:
        raise ValueError(f"relative_to_state names state dimensions {unknown}, the states have {state_dim}")
