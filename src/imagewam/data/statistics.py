"""Exact statistics of states and actions, for the processor's normalisation."""

from collections.abc import Sequence

import numpy as np

from .lerobot_dataset import ACTION_KEY, STATE_KEY, LeRobotDataset

QUANTILES = {"q01": 0.01, "q99": 0.99}


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
    action_columns = list(actions.T)
    if relative_to_state is not None:
        _check_relative(relative_to_state, actions.shape[1], states.shape[1])
        for dimension, state_dimension in enumerate(relative_to_state):
            if state_dimension is not None:
                differences = _differences(actions[:, dimension], states[:, state_dimension], remaining, horizon)
                action_columns[dimension] = differences
    return {
        name: describe(columns, QUANTILES) | {"count": len(states)}
        for name, columns in (("state", states.T), ("action", action_columns))
    }


def describe(columns: Sequence[np.ndarray], quantiles: dict[str, float]) -> dict[str, list[float]]:
    """min, max, mean, std and the named quantiles of each column of values, accumulated in float64."""
    columns = [np.asarray(column, dtype=np.float64) for column in columns]
    functions = {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}
    summary = {name: [float(function(column)) for column in columns] for name, function in functions.items()}
    return summary | {name: [float(np.quantile(column, q)) for column in columns] for name, q in quantiles.items()}


def _read(dataset: LeRobotDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States [N, Ds], actions [N, Da], and for each of the N frames how many its episode has left, itself included."""
    lengths = dataset.episode_lengths
    states = np.concatenate([dataset.values(STATE_KEY, episode) for episode in lengths])
    actions = np.concatenate([dataset.values(ACTION_KEY, episode) for episode in lengths])
    return states, actions, np.concatenate([np.arange(length, 0, -1) for length in lengths.values()])


def _differences(action: np.ndarray, state: np.ndarray, remaining: np.ndarray, horizon: int) -> np.ndarray:
    """a[t+k] - s[t] for all frames t and steps k < horizon that lie in the same episode, [number of such pairs]."""
    frames_by_step = [np.flatnonzero(remaining > step) for step in range(horizon)]
    return np.concatenate([action[frames + step] - state[frames] for step, frames in enumerate(frames_by_step)])


def _check_relative(relative_to_state: Sequence[int | None], action_dim: int, state_dim: int) -> None:
    if len(relative_to_state) != action_dim:
        raise ValueError(f"relative_to_state names {len(relative_to_state)} dimensions, the actions have {action_dim}")
    if unknown := [i for i in relative_to_state if i is not None and not 0 <= i < state_dim]:
        raise ValueError(f"relative_to_state names state dimensions {unknown}, the states have {state_dim}")
