"""Where a Panda gripper that points down can take hold of an object, and how far it stays from everything else.

Collision shapes of LIBERO's scenes are boxes, or are taken as the boxes around them. All lengths in metres, in the
simulator's world frame.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_WIDTH = 0.072  # of what fits between the open fingers, which are 0.08 apart
FINGER_DEPTH = 0.035  # of an object's top below the palm
ANGLES = np.linspace(0, np.pi, 24, endpoint=False)
DESCENT = (0.0, 0.03, 0.06, 0.1)  # heights above the grasp where the gripper must be clear too
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


@dataclass(frozen=True)
class Boxes:
    """centres [n, 3], axes [n, 3, 3] with a box's axes as columns, sizes [n, 3] half edges."""

    centres: np.ndarray
    axes: np.ndarray
    sizes: np.ndarray

    @property
    def corners(self) -> np.ndarray:
        """[n, 8, 3]"""
        offsets = _CORNERS[None] * self.sizes[:, None]
        return self.centres[:, None] + np.einsum("nij,nkj->nki", self.axes, offsets)

    @property
    def bottom(self) -> float:
        return float(self.corners[..., 2].min())

    @property
    def top(self) -> float:
        return float(self.corners[..., 2].max())

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Of points [m, 3] from the nearest box, zero inside: [m]; infinite if there is no box."""
        if not len(self.centres):
            return np.full(len(points), np.inf)
        local = np.einsum("nji,mnj->mni", self.axes, points[:, None] - self.centres[None])
        return np.linalg.norm(np.maximum(np.abs(local) - self.sizes, 0), axis=-1).min(axis=1)

    def part(self, chosen: np.ndarray) -> "Boxes":
        return Boxes(self.centres[chosen], self.axes[chosen], self.sizes[chosen])


@dataclass(frozen=True)
class Grasp:
    """position [3] of the point between the fingertips; angle of the line on which they close, modulo pi.

    clearance: from everything else. width: of what is between the fingers.
    """

    position: np.ndarray
    angle: float
    clearance: float
    width: float


def collision_boxes(sim: Any, bodies: set[int], inverse: bool = False) -> Boxes:
    """Boxes around the collision shapes of `bodies` of robosuite's `sim` and what hangs on them; or of all others."""
    model, data = sim.model._model, sim.data._data
    inside = np.isin(_roots(model, bodies), list(bodies))
    solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    plane = model.geom_type == 0
    chosen = solid & ~plane & (inside[model.geom_bodyid] != inverse)
    axes = data.geom_xmat.reshape(-1, 3, 3)[chosen]
    boxes = model.geom_aabb[chosen]  # centre and half edges in the shape's frame
    centres = data.geom_xpos[chosen] + np.einsum("nij,nj->ni", axes, boxes[:, :3])
    return Boxes(centres, axes, boxes[:, 3:])


def _roots(model: Any, bodies: set[int]) -> np.ndarray:
    """For every body itself, or the one of `bodies` that it hangs on."""
    roots = np.arange(model.nbody)
    for body in range(1, model.nbody):  # parents come first
        if body not in bodies:
            parent = roots[model.body_parentid[body]]
            roots[body] = parent if parent in bodies else body
    return roots


def gripper_points(grasp_position: np.ndarray, angle: float) -> np.ndarray:
    """Points on the open fingers and the hand [m, 3] with the fingertips around `grasp_position`."""
    fingers = [(a, b, z) for a in (-0.055, -0.042, 0.042, 0.055) for b in (-0.01, 0.01) for z in (-0.008, 0.02, 0.045)]
    hand = [(a, b, z) for a in (-0.1, -0.05, 0, 0.05, 0.1) for b in (-0.03, 0, 0.03) for z in (0.06, 0.1, 0.14)]
    points = np.array(fingers + hand)
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + grasp_position


def find_grasps(target: Boxes, obstacles: Boxes, hand_angle: float) -> list[Grasp]:
    """Grasps of `target`, the best first: across where it is narrow enough, else by its rim.

    The order: clear of everything else (2 cm are enough), square to narrow sides, a small turn from `hand_angle`,
    which is the gripper's angle now.
    """
    floor = target.bottom
    height = max((floor + target.top) / 2, target.top - FINGER_DEPTH)
    grasps = _across(target, obstacles, height) or _by_the_rim(target, obstacles)

    def value(grasp: Grasp) -> float:
        return min(grasp.clearance, 0.02) - grasp.width / 4 - 0.004 * abs(turn(grasp.angle, hand_angle))

    return sorted(grasps, key=value, reverse=True)


def turn(angle: float, hand_angle: float) -> float:
    """The smallest turn from `hand_angle` to `angle`, from -pi/2 to pi/2: the fingers are alike."""
    return (angle - hand_angle + np.pi / 2) % np.pi - np.pi / 2


def _across(target: Boxes, obstacles: Boxes, height: float) -> list[Grasp]:
    slab = _slab(target, height)
    grasps = []
    for angle in ANGLES:
        direction = np.array([np.cos(angle), np.sin(angle)])
        along, sideways = slab @ direction, slab @ np.array([-direction[1], direction[0]])
        if np.ptp(along) > MAX_WIDTH:
            continue
        middle = (along.max() + along.min()) / 2 * direction
        middle = middle + (sideways.max() + sideways.min()) / 2 * np.array([-direction[1], direction[0]])
        position = np.array([*middle, height])
        grasps.append(Grasp(position, angle, _clearance(position, angle, obstacles), np.ptp(along)))
    return grasps


def _by_the_rim(target: Boxes, obstacles: Boxes) -> list[Grasp]:
    height = target.top - 0.024
    rim = _slab(target, target.top - 0.004)
    centre = (rim.max(axis=0) + rim.min(axis=0)) / 2
    grasps = []
    for angle in np.concatenate([ANGLES, ANGLES + np.pi]):
        direction = np.array([np.cos(angle), np.sin(angle)])
        near = np.abs((rim - centre) @ np.array([-direction[1], direction[0]])) < 0.02
        radius = ((rim - centre) @ direction)[near].max(initial=0) - 0.004
        position = np.array([*(centre + radius * direction), height])
        grasps.append(Grasp(position, angle, _clearance(position, angle, obstacles), 0.0))
    return grasps


def _slab(target: Boxes, height: float) -> np.ndarray:
    """Corners [n, 2] of the boxes that reach through `height`, seen from above."""
    corners = target.corners
    through = (corners[..., 2].min(axis=1) < height + 0.008) & (corners[..., 2].max(axis=1) > height - 0.008)
    return corners[through if through.any() else slice(None)][..., :2].reshape(-1, 2)


def _clearance(position: np.ndarray, angle: float, obstacles: Boxes) -> float:
    points = gripper_points(position, angle)
    return min(float(obstacles.distance(points + [0, 0, rise]).min()) for rise in DESCENT)
