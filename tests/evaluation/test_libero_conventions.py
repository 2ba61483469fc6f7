import numpy as np
import pytest

from imagewam.evaluation.libero_conventions import axis_angle, rotated_180, simulator_actions


def test_the_gripper_goes_from_the_datasets_side_to_the_simulators():
    actions = np.zeros((5, 7))
    actions[:, 6] = [0, 0.4, 0.5, 0.7, 1]
    assert simulator_actions(actions)[:, 6].tolist() == [1, 1, 0, -1, -1]


def test_deltas_are_clipped():
    sent = simulator_actions(np.full((1, 7), -3.0))
    assert sent.tolist() == [[-1] * 6 + [1]]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((2, 4)), r"\[steps, 7\], got \[2, 4\]"),
        (np.zeros(7), r"\[steps, 7\], got \[7\]"),
        (np.zeros((0, 7)), r"got \[0, 7\]"),
        (np.full((1, 7), np.nan), "NaN"),
    ],
)
def test_wrong_actions_are_refused(actions, message):
    with pytest.raises(ValueError, match=message):
        simulator_actions(actions)


def test_axis_angle_of_known_rotations():
    half = np.sqrt(0.5)
    assert axis_angle(np.array([0, 0, 0, 1.0])).tolist() == [0, 0, 0]
    assert axis_angle(np.array([0, 0, half, half])) == pytest.approx([0, 0, np.pi / 2])
    assert axis_angle(np.array([1.0, 0, 0, 0])) == pytest.approx([np.pi, 0, 0])


def test_axis_angle_does_not_jump_where_the_gripper_points_down():
    """The hand tilts through straight down: w passes zero, where a canonical rotation vector turns around."""
    angles = np.linspace(np.pi - 0.2, np.pi + 0.2, 41)
    vectors = np.stack([axis_angle(np.array([np.sin(a / 2), 0, 0, np.cos(a / 2)])) for a in angles])
    assert np.abs(np.diff(vectors, axis=0)).max() < 0.02
    assert vectors[:, 0] == pytest.approx(angles)


def test_a_picture_is_turned_not_mirrored():
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[0, 0] = 255
    turned = rotated_180(picture)
    assert turned[1, 2].tolist() == [255] * 3 and turned.sum() == 3 * 255 and turned.flags.c_contiguous
