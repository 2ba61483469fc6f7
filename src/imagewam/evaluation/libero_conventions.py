"""How LIBERO's datasets and its simulator write the same things differently."""

import math

import numpy as np

# As in `imagewam.data.presets.LIBERO`, which the simulator's process cannot import: it would bring torch.
POSE_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z")
STATE_NAMES = (*POSE_NAMES, "gripper_left", "gripper_right")
ACTION_NAMES = (*(f"delta_{name}" for name in POSE_NAMES), "gripper")
GRIPPER = "0 closes, 1 opens; the simulator takes sign(1 - 2a)"


def simulator_actions(actions: np.ndarray) -> np.ndarray:
    """Actions of a policy as the simulator takes them: deltas clipped to [-1, 1], the gripper's a -> sign(-(2a - 1)).

    Args:
        actions: [k, 7] with the gripper from 0 (closed) to 1 (open).

    Returns:
        float64 [k, 7] with the gripper -1 (opens), 1 (closes) or, at exactly one half, 0 (stays).

    Raises:
        ValueError: another shape, no action at all, or numbers that are not finite.
    """
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] != len(ACTION_NAMES) or len(actions) == 0:
        raise ValueError(f"expected actions of shape [steps, {len(ACTION_NAMES)}], got {list(actions.shape)}")
    if not np.isfinite(actions).all():
        raise ValueError("actions contain NaN or infinite values")
    return np.concatenate([actions[:, :6].clip(-1, 1), np.sign(1 - 2 * actions[:, 6:])], axis=1)


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vector [3] of a quaternion [4] (x, y, z, w), as robosuite's `quat2axisangle` has it.

    The angle is 2 arccos(w), from 0 to 2 pi. A canonical rotation vector (angle up to pi, such as scipy's) would jump
    to the opposite side whenever w changes its sign, which it does all the time for a gripper that points down.
    """
    w = min(1.0, max(-1.0, float(quaternion[3])))
    length = math.sqrt(1.0 - w * w)
    if math.isclose(length, 0.0):
        return np.zeros(3)
    return np.asarray(quaternion[:3]) * (2.0 * math.acos(w) / length)


def rotated_180(image: np.ndarray) -> np.ndarray:
    """The image [H, W, 3] turned by 180 degrees: the simulator's as the datasets hold it."""
    return np.ascontiguousarray(image[::-1, ::-1])
