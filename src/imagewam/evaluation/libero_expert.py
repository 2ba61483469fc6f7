"""A scripted expert for LIBERO's pick-and-place tasks: it knows all poses and plays the actions of a dataset.

It reads the goal from the task's definition, takes hold of the object, lifts it, carries it over what stands in the
way, lowers it and lets go; whatever fails is tried again with another grasp.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .libero_grasps import Boxes, Grasp, collision_boxes, find_grasps, turn

OPEN, CLOSED = 1.0, 0.0
METRES_PER_STEP, RADIANS_PER_STEP = 0.05, 0.5  # of an action of 1, by robosuite's OSC_POSE
MARGIN = 0.04  # between what is carried and what it is carried over
PLACES = ("in", "on")


class LiberoExpert:
    """Call `action` once per step; it looks at the simulator anew each time.

    Args:
        environment: LIBERO's robosuite environment, after a reset.

    Raises:
        ValueError: the goal is not only to put objects somewhere.
    """

    def __init__(self, environment: Any):
        self._env = environment
        self._sim = environment.sim
        self._robot = environment.robots[0]
        self._goals = environment.parsed_problem["goal_state"]
        other = [goal for goal in self._goals if goal[0] not in PLACES or goal[1] not in environment.objects_dict]
        if other:
            goals = ", ".join(" ".join(goal) for goal in other)
            raise ValueError(f"the LIBERO expert only puts objects in or on something; the task wants: {goals}")
        self._script = self._play()

    def action(self) -> np.ndarray:
        """float32 [7]: six deltas in [-1, 1] and the gripper, 0 closed or 1 open."""
        return next(self._script).astype(np.float32)

    # The script: a generator, so that every phase is a loop that ends when it has done its part.

    def _play(self) -> Iterator[np.ndarray]:
        while True:
            for goal in self._goals:
                failed: list[float] = []
                while not self._env._eval_predicate(goal):
                    yield from self._move_object(goal[1], goal[2], failed)
            yield self._command(self._hand, 0.0, OPEN)

    def _move_object(self, name: str, place: str, failed: list[float]) -> Iterator[np.ndarray]:
        grasp = self._choose_grasp(name, failed)
        angle, start = grasp.angle, self._object(name)
        target = self._boxes(name)
        above = self._travel_height(self._hand, grasp.position, 0.01, set())
        yield from self._travel(np.array([*self._hand[:2], max(above, self._hand[2])]), None, OPEN, 25)
        yield from self._travel(np.array([*grasp.position[:2], above]), angle, OPEN, 70, 0.006, 0.04)
        yield from self._travel(np.array([*grasp.position[:2], grasp.position[2] + 0.03]), angle, OPEN, 40, 0.006)
        yield from self._travel(grasp.position, angle, OPEN, 20, 0.004)
        held_at = self._hand
        hang = held_at[2] - target.bottom
        for _ in range(9):
            yield self._command(held_at, angle, CLOSED)
        goal = self._place_position(place)
        above = self._travel_height(held_at, goal, hang, {name})
        up = np.array([*held_at[:2], max(above, held_at[2] + 0.05)])
        yield from self._travel(up, angle, CLOSED, 30, 0.02)
        failed.append(angle)  # only looked at if this does not reach the goal
        if self._object(name)[2] - start[2] < 0.02:
            yield from self._let_go(angle)
            return
        yield from self._carry(name, place, above, angle)
        yield from self._lower(name, place, hang, angle)
        yield from self._let_go(angle)

    def _carry(self, name: str, place: str, above: float, angle: float) -> Iterator[np.ndarray]:
        stall = _Stall()
        for _ in range(90):
            offset = self._hand[:2] - self._object(name)[:2]
            target = np.array([*(self._place_position(place)[:2] + offset), above])
            yield self._command(target, angle, CLOSED)
            if np.linalg.norm(self._hand[:2] - target[:2]) < 0.008 or stall.seen(self._hand):
                return

    def _lower(self, name: str, place: str, hang: float, angle: float) -> Iterator[np.ndarray]:
        height = self._release_height(name, place, hang)
        stall = _Stall()
        for _ in range(40):
            offset = self._hand[:2] - self._object(name)[:2]
            yield self._command(np.array([*(self._place_position(place)[:2] + offset), height]), angle, CLOSED)
            if abs(self._hand[2] - height) < 0.006 or stall.seen(self._hand):
                return

    def _let_go(self, angle: float) -> Iterator[np.ndarray]:
        here = self._hand
        for _ in range(14):  # the fingers take their time, and a hand that rises too early hooks the object
            yield self._command(here, angle, OPEN)
        yield from self._travel(here + [0, 0, 0.1], angle, OPEN, 15, 0.02)

    def _travel(
        self,
        target: np.ndarray,
        angle: float | None,
        gripper: float,
        steps: int,
        near: float = 0.015,
        aligned: float = 0.1,
    ) -> Iterator[np.ndarray]:
        """Go to `target` until the hand is `near` (metres) and `aligned` (radians), or stalls; at most `steps`."""
        stall = _Stall()
        for _ in range(steps):
            missing = 0.0 if angle is None else turn(angle, self._hand_angle)
            if np.linalg.norm(self._hand - target) < near and abs(missing) < aligned:
                return
            yield self._command(target, angle, gripper)
            if abs(missing) < aligned and stall.seen(self._hand):
                return

    def _command(self, target: np.ndarray, angle: float | None, gripper: float) -> np.ndarray:
        moved = (target - self._hand) / METRES_PER_STEP
        # A long way is gone straight: the three deltas keep their proportion.
        moved = moved / max(1.0, np.abs(moved).max())
        missing = 0.0 if angle is None else turn(angle, self._hand_angle)
        # Keep pointing down: the rotation that brings the hand's axis to the vertical, and the turn about it.
        tilt = np.cross(self._sim.data.get_site_xmat(self._site)[:, 2], [0, 0, -1])
        rotation = np.clip((tilt + [0, 0, missing]) / RADIANS_PER_STEP, -0.6, 0.6)
        return np.concatenate([moved, rotation, [gripper]])

    # What the expert knows.

    @property
    def _site(self) -> str:
        return self._robot.gripper.important_sites["grip_site"]

    @property
    def _hand(self) -> np.ndarray:
        return np.array(self._sim.data.get_site_xpos(self._site))

    @property
    def _hand_angle(self) -> float:
        left, right = (
            self._sim.data.get_body_xpos(f"{self._robot.gripper.naming_prefix}{name}")
            for name in ("leftfinger", "rightfinger")
        )
        return float(np.arctan2(left[1] - right[1], left[0] - right[0]))

    def _object(self, name: str) -> np.ndarray:
        return np.array(self._sim.data.body_xpos[self._env.obj_body_id[name]])

    def _boxes(self, name: str) -> Boxes:
        return collision_boxes(self._sim, {self._env.obj_body_id[name]})

    def _others(self, names: set[str]) -> Boxes:
        """Everything but these objects and the robot."""
        model = self._sim.model
        robot = {model.body_name2id(self._robot.robot_model.root_body)}
        return collision_boxes(self._sim, {self._env.obj_body_id[name] for name in names} | robot, inverse=True)

    def _choose_grasp(self, name: str, failed: list[float]) -> Grasp:
        grasps = find_grasps(self._boxes(name), self._others({name}), self._hand_angle)
        fresh = [grasp for grasp in grasps if all(abs(grasp.angle - angle) > 0.2 for angle in failed)]
        return (fresh or grasps)[0]

    def _travel_height(self, start: np.ndarray, end: np.ndarray, hang: float, without: set[str]) -> float:
        """Height of the hand on a way from `start` to `end` with something that hangs down by `hang`."""
        corners = self._others(without).corners
        way = end[:2] - start[:2]
        place = np.clip((corners[..., :2] - start[:2]) @ way / max(way @ way, 1e-9), 0, 1)
        off = np.linalg.norm(corners[..., :2] - start[:2] - place[..., None] * way, axis=-1)
        tops = corners[..., 2].max(axis=1)[(off < 0.13).any(axis=1)]
        return max(float(tops.max(initial=end[2])), end[2]) + hang + MARGIN

    def _place_position(self, place: str) -> np.ndarray:
        if place in self._env.object_sites_dict:
            return np.array(self._sim.data.get_site_xpos(place))
        return self._object(place)

    def _release_height(self, name: str, place: str, hang: float) -> float:
        """Of the hand where the object stands on its place, or hangs just above it where the hand does not fit in."""
        position = self._place_position(place)
        around = self._others({name})
        near = np.linalg.norm(around.corners[..., :2] - position[:2], axis=-1).min(axis=1) < 0.12
        below = around.part(near)
        top = below.top if near.any() else position[2]
        surface = position[2] if place not in self._env.object_sites_dict else top
        return max(surface + hang + 0.004, top - 0.02)


class _Stall:
    """Tells when the hand has as good as stopped: something is in the way, or the arm's friction holds the rest."""

    def __init__(self, steps: int = 4, metres: float = 0.0008):
        self._steps, self._metres = steps, metres
        self._still, self._last = 0, np.full(3, np.inf)

    def seen(self, position: np.ndarray) -> bool:
        moved = np.linalg.norm(position - self._last)
        self._still, self._last = (self._still + 1 if moved < self._metres else 0), position
        return self._still >= self._steps
