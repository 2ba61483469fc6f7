"""Policy contracts of the robots that published checkpoints were trained for, told apart by their action size."""

from ..processing.camera_layout import CameraSpec
from ..processing.contract import ActionSpec, PolicyContract, StateSpec

_ARM = [f"joint_{i}" for i in range(1, 7)] + ["gripper"]
_LIBERO_GRIPPER = "0 closes, 1 opens; the simulator takes sign(1 - 2a)"
_ROBOTWIN_GRIPPER = "0 closes, 1 opens"
_BOTH_ARMS = [f"{side}_{name}" for side in ("left", "right") for name in _ARM]


def published_contract(
    action_dim: int, state_dim: int, horizon: int, robotwin_head: tuple[int, int] = (192, 256)
) -> PolicyContract:
    """LIBERO for 7-D actions, RoboTwin 2.0 for 14-D ones, as their training and evaluation code has it.

    The published files do not record their cameras, names or frame rate. The contract is for the simulator: LIBERO
    renders upside down, so its cameras have `rotate_180=True`. Most LeRobot copies of LIBERO are turned already; for
    them it has to be False.

    Args:
        robotwin_head: height and width of RoboTwin's head camera on the canvas.

    Raises:
        ValueError: no published robot has these sizes.
    """
    if (action_dim, state_dim) == (7, 8):
        return _libero(horizon)
    if (action_dim, state_dim) == (14, 14):
        return _robotwin(horizon, *robotwin_head)
    raise ValueError(
        f"published checkpoints with a known contract are for LIBERO (7-D actions, 8-D state) and RoboTwin (14, 14); "
        f"this one has {action_dim}-D actions and {state_dim}-D state: give its contract"
    )


def _libero(horizon: int) -> PolicyContract:
    """Both 224 x 224 views side by side; six deltas and the gripper, min/max."""
    pose = ["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z"]
    return PolicyContract(
        cameras=(CameraSpec("agentview", 224, 224, rotate_180=True), CameraSpec("wrist", 224, 224, rotate_180=True)),
        layout="horizontal",
        state=StateSpec([*pose, "gripper_left", "gripper_right"], "min_max", rotation="axis_angle"),
        action=ActionSpec([*[f"delta_{name}" for name in pose], "gripper"], "min_max", gripper=_LIBERO_GRIPPER),
        fps=None,
        horizon=horizon,
    )


def _robotwin(horizon: int, height: int, width: int) -> PolicyContract:
    """Head above the two wrists of half its size; absolute joints, mean/std."""
    return PolicyContract(
        cameras=(
            CameraSpec("head_camera", height, width),
            CameraSpec("left_camera", height // 2, width // 2),
            CameraSpec("right_camera", height // 2, width // 2),
        ),
        layout="robotwin",
        state=StateSpec(_BOTH_ARMS, "mean_std"),
        action=ActionSpec(_BOTH_ARMS, "mean_std", units="rad", gripper=_ROBOTWIN_GRIPPER),
        fps=None,
        horizon=horizon,
    )
