import numpy as np
import pytest

from imagewam.evaluation.libero_grasps import Boxes, find_grasps, gripper_points, turn

NOTHING = Boxes(np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros((0, 3)))


def upright(*boxes):
    """Boxes without rotation, each (centre, half edges)."""
    centres, sizes = (np.array(part, float) for part in zip(*boxes, strict=True))
    return Boxes(centres, np.tile(np.eye(3), (len(boxes), 1, 1)), sizes)


def ring(radius, height):
    """A bowl without bottom: 24 small boxes on a circle around (1, 0), standing on z = 0."""
    angles = np.arange(24) * 2 * np.pi / 24
    places = [(1 + radius * np.cos(angle), radius * np.sin(angle), height / 2) for angle in angles]
    return upright(*((place, (0.004, 0.004, height / 2)) for place in places))


def test_distances_from_a_turned_box():
    half = np.sqrt(0.5)
    turned = Boxes(np.zeros((1, 3)), np.array([[[half, -half, 0], [half, half, 0], [0, 0, 1]]]), np.full((1, 3), 1.0))
    points = np.array([[2.0, 0, 0], [0, 0, 0.5], [0, 0, 3]])
    assert turned.distance(points) == pytest.approx([2 - np.sqrt(2), 0, 2])
    assert turned.top == 1 and turned.corners[..., 0].max() == pytest.approx(np.sqrt(2))


def test_a_flat_box_is_taken_across_its_narrow_side():
    box = upright(((0.3, 0.1, 0.01), (0.04, 0.02, 0.01)))
    best = find_grasps(box, NOTHING, hand_angle=0.0)[0]
    assert best.position == pytest.approx([0.3, 0.1, 0.01]) and abs(turn(best.angle, np.pi / 2)) < 0.3


def test_a_tall_bottle_is_taken_near_its_top():
    bottle = upright(((0, 0, 0.1), (0.02, 0.02, 0.1)))
    assert find_grasps(bottle, NOTHING, 0.0)[0].position[2] == pytest.approx(0.2 - 0.035)


def test_of_equal_grasps_the_one_with_the_smaller_turn_comes_first():
    can = ring(0.03, 0.08)
    for angle in (0.0, 1.0, -1.2):
        assert abs(turn(find_grasps(can, NOTHING, angle)[0].angle, angle)) < 0.15


def test_a_bowl_is_taken_by_the_rim_away_from_its_neighbour():
    bowl, neighbour = ring(0.06, 0.05), upright(((1.1, 0, 0.1), (0.02, 0.2, 0.1)))
    best = find_grasps(bowl, neighbour, hand_angle=0.0)[0]
    assert np.hypot(*(best.position[:2] - [1, 0])) == pytest.approx(0.06, abs=0.01)
    assert best.position[0] < 1.03 and best.clearance > 0.01
    assert 0.02 < best.position[2] < 0.05


def test_clearance_counts_the_hand_above_the_fingers():
    can, shelf = ring(0.03, 0.08), upright(((1, 0, 0.16), (0.3, 0.3, 0.01)))
    assert max(grasp.clearance for grasp in find_grasps(can, shelf, 0.0)) < 0.02


def test_gripper_points_lie_on_the_line_of_the_angle():
    points = gripper_points(np.array([0.0, 0, 0.5]), np.pi / 2)
    assert np.abs(points[:, 1]).max() == pytest.approx(0.1) and np.abs(points[:, 0]).max() == pytest.approx(0.03)
    assert points[:, 2].min() == pytest.approx(0.492)


def test_turns_are_the_short_way():
    assert turn(0.1, -0.1) == pytest.approx(0.2)
    assert turn(np.pi - 0.1, 0.1) == pytest.approx(-0.2)
    assert turn(3 * np.pi + 0.1, 0) == pytest.approx(0.1)
