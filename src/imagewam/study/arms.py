"""What the study compares: each arm changes one thing about the tiny policy, or is another kind of policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Arm:
    """One way to train, and the ways in which the result is played.

    Attributes:
        title: for tables.
        kind: "imagewam", or a policy without an editing model: "cloning", "flow".
        config: of `ImageWAMConfig`, in place of the tiny policy's.
        weight_copy: of `from_editing_pipeline`.
        pretrained: whether the editing transformer first learns to edit, for as many steps again, so that there are
            weights worth copying.
        played: title -> config under which the trained policy is played; the arm's own by default.
    """

    title: str
    kind: Literal["imagewam", "cloning", "flow"] = "imagewam"
    config: Mapping[str, Any] = field(default_factory=dict)
    weight_copy: str | None = "auto"
    pretrained: bool = False
    played: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})


ARMS: dict[str, Arm] = {
    "prefix": Arm(
        "prefix, context at time 0",
        played={f"{steps} action steps": {"num_inference_steps": steps} for steps in (10, 3, 1)},
    ),
    "no-image-loss": Arm("without the image loss", config={"image_loss_weight": 0.0}),
    "sampled-context": Arm("prefix, context at the sampled time", config={"context_timestep": "target"}),
    "denoise": Arm(
        "denoise (the paper's)",
        config={"edit_mode": "denoise", "context_timestep": "target"},
        played={f"τ* = {time:g}": {"edit_timestep": time} for time in (1.0, 0.75, 0.5)},
    ),
    "copied-expert": Arm("editing learnt first, expert copied", weight_copy="per_segment", pretrained=True),
    "fresh-expert": Arm("editing learnt first, expert fresh", weight_copy=None, pretrained=True),
    "cloning": Arm("CNN, behaviour cloning", kind="cloning"),
    "flow": Arm("CNN, flow matching", kind="flow"),
}
