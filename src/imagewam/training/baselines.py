"""Two policies that see no image, in physical units: what a trained policy must beat to have learned anything."""

from collections.abc import Callable, Sequence

import numpy as np

# From raw states [B, Ds] to one action [B, Da] that is held over the whole chunk.
Baseline = Callable[[np.ndarray], np.ndarray]


def mean_action(mean: Sequence[float]) -> Baseline:
    """Always the mean action [Da] of the training episodes."""
    mean = np.asarray(mean, dtype=np.float32)
    return lambda states: np.broadcast_to(mean, (len(states), len(mean)))


def repeat_state(state_index: Sequence[int]) -> Baseline:
    """Stay where the robot is: action dimension i is the present value of state dimension `state_index[i]`."""
    state_index = list(state_index)
    return lambda states: states[:, state_index]


def matching_state_index(state_names: Sequence[str], action_names: Sequence[str]) -> list[int] | None:
    """The state dimension that carries the same name as each action dimension, or None unless all have one."""
    if not set(action_names) <= set(state_names):
        return None
    return [list(state_names).index(name) for name in action_names]


def absolute_chunk_error(predicted: np.ndarray, actions: np.ndarray, is_pad: np.ndarray) -> np.ndarray:
    """Sum of absolute errors over the valid steps of each chunk.

    Args:
        predicted: [B, H, Da], or [B, 1, Da] for one action held over the chunk.
        actions: [B, H, Da] as recorded, same units.
        is_pad: [B, H], true for steps after the end of the episode.

    Returns:
        [B, Da]; divided by the number of valid steps it is the mean absolute error.
    """
    return (np.abs(predicted - actions) * ~is_pad[..., None]).sum(axis=1)
