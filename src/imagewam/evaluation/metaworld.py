"""Meta-World: fifty tasks of one simulated arm, with two cameras, an instruction and a scripted expert per task.

This module never imports torch: Mesa's software OpenGL and triton crash when they meet in one process, so the
simulator runs in a worker of its own (`imagewam.evaluation.env_worker`).
"""

import os
import sys
import warnings

import numpy as np

from .environment import EnvironmentSpec, Observation, StepResult
from .metaworld_tasks import TASK_INSTRUCTIONS

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # mujoco reads it once, at import; egl needs no display

import mujoco
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.policies import ENV_POLICY_MAP

SCENE_CAMERA = "corner2"
SCENE_CAMERA_POSITION = (0.75, 0.075, 0.7)  # metres; nearer to the table than the model file's
CAMERAS = (SCENE_CAMERA, "gripperPOV")
SURROUNDINGS = ("world", "tablelink", "RetainingWall", "base", "mocap")  # bodies at the root of robot and furniture
GOAL_TASKS = ("reach-v3", "reach-wall-v3")
STATE_NAMES = ("hand_x", "hand_y", "hand_z", "gripper_opening")
ACTION_NAMES = ("hand_dx", "hand_dy", "hand_dz", "gripper_effort")


class MetaWorldEnv:
    """One Meta-World scene at a time, seen by `cameras` at `image_size` pixels square.

    State: hand position (metres) and gripper opening (0..1). Actions: hand displacement and gripper effort in [-1, 1],
    clipped to that range. The simulator takes at most 500 actions per episode.

    Args:
        cameras: those to render; none at all saves most of the time.
        image_size: pixels, square.
        film_size: pixels of `render` and of filmed frames, square.
        fast_rendering: without shadows, reflections and multisampling, which takes a fraction of the time and gives
            slightly other pictures than upstream's; False for a policy that was trained on those.
    """

    def __init__(
        self,
        cameras: tuple[str, ...] = CAMERAS,
        image_size: int = 96,
        film_size: int = 320,
        fast_rendering: bool = True,
    ):
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self.film_size = film_size
        self.fast_rendering = fast_rendering
        self._task = None

    def describe(self) -> EnvironmentSpec:
        return EnvironmentSpec(
            robot_type="metaworld_sawyer",
            fps=80,
            camera_sizes=dict.fromkeys(self.cameras, (self.image_size, self.image_size)),
            state_names=STATE_NAMES,
            action_names=ACTION_NAMES,
            gripper="+1 closes, -1 opens",
            upside_down=False,
            protocol={"fast_rendering": self.fast_rendering},
        )

    def reset(self, task: str, seed: int) -> Observation:
        if task != self._task:
            self._load(task)
        self._simulator.seed(seed)
        self._privileged, _ = self._simulator.reset(seed=seed)
        self._expert = ENV_POLICY_MAP[task]()
        self._seed, self._steps = seed, 0
        return self._observe()

    def step(self, actions: np.ndarray, film: bool = False) -> StepResult:
        actions = self._checked(actions)
        frames, success, before = [], False, self._steps
        for action in actions:
            self._privileged, _, _, _, info = self._simulator.step(action)
            self._steps += 1
            success = bool(info["success"])
            if film:
                frames.append(self.render())
            if success:
                break
        return StepResult(self._observe(), success, self._steps - before, frames)

    def expert_action(self) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "constants may be too high": the clip below is the answer
            action = self._expert.get_action(self._privileged)
        return np.clip(action, -1, 1).astype(np.float32)

    def render(self) -> np.ndarray:
        return self._picture(SCENE_CAMERA, self._film_renderer)

    def object_masks(self) -> dict[str, np.ndarray]:
        """Where each camera sees what the task is about: bool [image_size, image_size], turned as the images are.

        Everything that is neither robot nor furniture; of the reaching tasks, whose object is a decoy, the goal.
        """
        return {camera: self._object_mask(camera) for camera in self.cameras}

    def close(self) -> None:
        if self._task is not None:
            self._renderer.close()
            self._film_renderer.close()
            self._simulator.close()
        self._task = None

    def _load(self, task: str) -> None:
        if task not in TASK_INSTRUCTIONS:
            raise ValueError(f"Meta-World has no task {task!r}; it has {', '.join(TASK_INSTRUCTIONS)}")
        self.close()
        self._simulator = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"]()
        self._simulator._freeze_rand_vec = False  # else every reset repeats one start position
        self._simulator.seeded_rand_vec = True
        model = self._simulator.model
        self._check_cameras(model)
        model.camera(SCENE_CAMERA).pos = SCENE_CAMERA_POSITION
        if self.fast_rendering:
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0  # read when a renderer makes its context
        self._renderer = mujoco.Renderer(model, self.image_size, self.image_size)
        self._film_renderer = mujoco.Renderer(model, self.film_size, self.film_size)
        self._task = task

    def _check_cameras(self, model: mujoco.MjModel) -> None:
        known = [model.camera(index).name for index in range(model.ncam)]
        if unknown := set(self.cameras) - set(known):
            raise ValueError(f"no camera {sorted(unknown)} in Meta-World; it has {known}")

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions, dtype=np.float32)
        if actions.ndim != 2 or actions.shape[1] != len(ACTION_NAMES) or len(actions) == 0:
            raise ValueError(f"expected actions of shape [steps, {len(ACTION_NAMES)}], got {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise ValueError("actions contain NaN or infinite values")
        return np.clip(actions, -1, 1)

    def _observe(self) -> Observation:
        return Observation(
            images={camera: self._picture(camera, self._renderer) for camera in self.cameras},
            state=self._privileged[:4].astype(np.float32),
            instruction=TASK_INSTRUCTIONS[self._task],
            task=self._task,
            seed=self._seed,
            step=self._steps,
        )

    def _object_mask(self, camera: str) -> np.ndarray:
        model, renderer = self._simulator.model, self._renderer
        renderer.enable_segmentation_rendering()
        try:
            renderer.update_scene(self._simulator.data, camera)
            numbers, kinds = np.moveaxis(renderer.render(), -1, 0)
        finally:
            renderer.disable_segmentation_rendering()
        if self._task in GOAL_TASKS:
            mask = (kinds == mujoco.mjtObj.mjOBJ_SITE) & (numbers == model.site("goal").id)
        else:
            roots = model.body_rootid[model.geom_bodyid]
            of_object = np.array([model.body(root).name not in SURROUNDINGS for root in roots])
            mask = (kinds == mujoco.mjtObj.mjOBJ_GEOM) & of_object[np.clip(numbers, 0, None)]
        return np.ascontiguousarray(mask[::-1, ::-1] if camera == SCENE_CAMERA else mask)

    def _picture(self, camera: str, renderer: mujoco.Renderer) -> np.ndarray:
        renderer.update_scene(self._simulator.data, camera)
        if self.fast_rendering:
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        picture = renderer.render()
        if camera == SCENE_CAMERA:  # this camera hangs upside down
            picture = picture[::-1, ::-1]
        return np.ascontiguousarray(picture)
