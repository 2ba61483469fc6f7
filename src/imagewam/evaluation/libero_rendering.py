"""Pictures of a robosuite scene, by robosuite's own renderer, taken only when asked for."""

from copy import copy
from types import SimpleNamespace
from typing import Any

import numpy as np


class LiberoRenderer:
    """Pictures of the moment that robosuite observes, which is not the end of a step.

    robosuite samples all observations after the first of a control step's 25 physics steps. What a policy sees is thus
    nearly a control step old, in recordings and in evaluations. Its own way to have that is to render in every step;
    here the moment is kept, and rendered if somebody looks at it.

    Args:
        environment: robosuite's, with `hard_reset=False`: the scene must stay the same object.
        fast: without shadows, reflections and multisampling, which takes a fraction of the time and gives slightly
            other pictures.
    """

    def __init__(self, environment: Any, fast: bool):
        from robosuite.utils.observables import Observable, sensor

        @sensor(modality="moment")
        def keep_moment(_cache: dict) -> float:
            self._keep()
            return 0.0

        self._sim = environment.sim
        self._fast = fast
        self._context = None
        environment.add_observable(Observable("moment", keep_moment, sampling_rate=environment.control_freq))

    def open(self) -> None:
        """Make the OpenGL context, which else comes with the first picture.

        That computes the scene anew, by a rounding error otherwise than a step does: to be called before a reset.
        """
        if self._context is None:
            self._context = self._make_context()
            self._keep()

    def close(self) -> None:
        """Free the context; robosuite's own way to do so, at the interpreter's end, is too late for EGL."""
        if self._context is not None:
            self._sim._render_context_offscreen = None
            self._context = None

    def picture(self, camera: str, size: int) -> np.ndarray:
        """uint8 [size, size, 3] as OpenGL delivers it: the bottom row comes first."""
        self.open()
        self._context.gl_ctx.make_current()
        self._context.render(width=size, height=size, camera_id=self._sim.model.camera_name2id(camera))
        return self._context.read_pixels(size, size)

    def _keep(self) -> None:
        if self._context is not None:
            self._context.data = SimpleNamespace(_data=copy(self._sim.data._data))

    def _make_context(self) -> Any:
        import mujoco  # not before LIBERO's import has settled what mujoco renders with
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        model = self._sim.model._model
        if self._fast:
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0  # both are read when a context is made
        context = MjRenderContextOffscreen(self._sim, device_id=-1)
        context.vopt.geomgroup[0] = 0  # collision shapes
        context.vopt.geomgroup[1] = 1
        if self._fast:
            context.scn.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return context
