"""LIBERO driven as upstream's evaluations do it, beside our environment, in one process without torch."""

import numpy as np

from imagewam.evaluation.environment import Observation
from imagewam.evaluation.libero import LiberoEnv
from imagewam.evaluation.libero_conventions import simulator_actions
from imagewam.evaluation.libero_init_states import read_init_states
from imagewam.evaluation.libero_install import import_simulator, package_folder


class Comparison:
    def __init__(self, task: str, size: int):
        self.task, self.size = task, size

    def play(self, seed: int, actions: np.ndarray) -> tuple[Observation, Observation]:
        """What both see after `actions`; the images of the second are as the simulator delivers them."""
        ours = LiberoEnv(image_size=self.size)
        ours.reset(self.task, seed)
        seen = ours.step(actions).observation
        ours.close()

        from robosuite.utils.transform_utils import quat2axisangle

        folder, (suite, name) = package_folder(), self.task.split("/")
        upstream = import_simulator().OffScreenRenderEnv(
            bddl_file_name=str(folder / "bddl_files" / suite / f"{name}.bddl"),
            camera_heights=self.size,
            camera_widths=self.size,
        )
        np.random.seed(seed)
        upstream.reset()
        upstream.set_init_state(read_init_states(folder / "init_files" / suite / f"{name}.pruned_init")[seed])
        for action in [[0, 0, 0, 0, 0, 0, -1]] * 30 + list(simulator_actions(actions)):
            theirs, _, _, _ = upstream.step(action)
        images = {"agentview": theirs["agentview_image"], "wrist": theirs["robot0_eye_in_hand_image"]}
        parts = theirs["robot0_eef_pos"], quat2axisangle(theirs["robot0_eef_quat"]), theirs["robot0_gripper_qpos"]
        return seen, Observation(images, np.concatenate(parts), seen.instruction, self.task, seed, seen.step)

    def close(self) -> None:
        pass
