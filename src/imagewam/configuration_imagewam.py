"""`ImageWAMConfig`: the editing backbone, the action expert, the flow and what actions get to see."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .formats import CONFIG_MIGRATIONS, CONFIG_VERSION, migrate
from .shipped import shipped_source

# What released checkpoints were trained with, where it differs from the paper (the defaults): "published" those of
# ImageWAM, "fastwam" those of its video baseline.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "published": {
        "edit_mode": "prefix",
        "edit_timestep": 0.0,
        "image_loss_weight": 0.5,
        "loss_weighting": "bell",
        "time_dtype": "model",
    },
    "fastwam": {
        "action_horizon": 32,
        "target_offsets": [4, 8, 12, 16, 20, 24, 28, 32],
        "edit_mode": "prefix",
        "context_timestep": 0,
        "loss_weighting": "bell",
        "time_dtype": "model",
    },
}


@strict
class ImageWAMConfig(PreTrainedConfig):
    r"""
    Configuration of [`ImageWAMForActionPrediction`]. The defaults are the paper's; `from_preset("published")` gives
    the settings of the released checkpoints, `from_preset("fastwam")` those of the video baseline.

    Args:
        backbone (`dict`):
            `family` (a registered editing family), `transformer` (its diffusers config, or the name of a built-in
            size such as `"4B"`) and the family's own options.
        frozen_parts (`dict`):
            `{"vae": {"repo", "subfolder", "revision"}, "text_encoder": ...}`, or one `"pipeline"` for `any-pipeline`;
            repo None: in the checkpoint's folder.
        action_dim, state_dim, action_horizon (`int`):
            Size of one action, of the proprioceptive state, number of actions per chunk. A `state_dim` of 0 (no state
            token) is for inputs of your own making: `ImageWAMProcessor` always has a state.
        action_hidden_size (`int`, *optional*), action_mlp_ratio (`float`):
            Width of the action expert (default: its family's, 1024 or, for Ovis-U1, 1536) and of its MLPs relative to
            it. Its attention is as wide as the backbone's.
        target_offsets (`list[int]`, *optional*):
            How many steps ahead the target frames lie; several only for families that predict video. Default: one
            frame, `action_horizon` steps ahead.
        edit_mode (`"denoise"`, `"prefix"`, `"joint"` or `"imagine"`):
            What actions attend to: the context and the target tokens after one editing step; the context only; context
            and a target that is denoised in lockstep with them; context and a target that was denoised in full before.
            The last two are those of the video baseline, and need a fixed `context_timestep`.
        edit_timestep (`float`, *optional*):
            τ* in [0, 1], the image time of that step at inference (paper, Eq. 10). Default: 1 (pure noise) for
            `"denoise"`, else 0; it has no other value for `"joint"` and `"imagine"`.
        context_timestep (`"target"` or `float`):
            The time that modulates context tokens: a fixed number, or the sampled image time while training and
            `edit_timestep` at inference.
        time_shift (`float`):
            s of t = s·u / (1 + (s - 1)·u), for drawing times and for the Euler schedule.
        loss_weighting (`"none"` or `"bell"`), action_loss_weight, image_loss_weight (`float`):
            loss = action_loss_weight · L_act + image_loss_weight · L_img, each weighted by w(t). Families that do not
            denoise a target (`any-pipeline`) insist on an `image_loss_weight` of 0.0.
        num_inference_steps (`int`):
            Euler steps of `predict_action` unless it is told otherwise.
        time_dtype (`"float32"` or `"model"`):
            What times, Euler step sizes and the chunk between steps are rounded to; the model's own dtype for parity
            with released weights. The action expert and FLUX.2 embed the time in their own dtype in either case;
            OmniGen2 and Ovis-U1 in float32 unless it says "model".
        format_version (`int`):
            Of the saved file, see `imagewam.formats`; there is no other than the newest.
    """

    model_type = "imagewam"

    backbone: dict[str, Any] | None = None
    frozen_parts: dict[str, Any] | None = None
    action_dim: int = 7
    state_dim: int = 8
    action_horizon: int = 16
    action_hidden_size: int | None = None
    action_mlp_ratio: float = 4.0
    target_offsets: list[int] | None = None
    edit_mode: Literal["denoise", "prefix", "joint", "imagine"] = "denoise"
    edit_timestep: float | None = None
    context_timestep: float | int | Literal["target"] = "target"
    time_shift: float = 5.0
    loss_weighting: Literal["none", "bell"] = "none"
    action_loss_weight: float = 1.0
    image_loss_weight: float = 1.0
    num_inference_steps: int = 10
    time_dtype: Literal["float32", "model"] = "float32"
    format_version: Literal[CONFIG_VERSION] = CONFIG_VERSION

    def __post_init__(self, **kwargs):
        if self.backbone is None:
            self.backbone = {"family": "flux2-klein", "transformer": "4B"}
        if self.frozen_parts is None:
            self.frozen_parts = {}
        if self.target_offsets is None:
            self.target_offsets = [self.action_horizon]
        if self.edit_timestep is None:
            self.edit_timestep = 1.0 if self.edit_mode == "denoise" else 0.0
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, preset: str, **kwargs) -> "ImageWAMConfig":
        """A configuration with the settings of `"paper"`, `"published"` or `"fastwam"`; `kwargs` go on top."""
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; there are {sorted(PRESETS)}")
        return cls(**{**PRESETS[preset], **kwargs})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; a policy that comes with the package is found by its name."""
        return super().from_pretrained(shipped_source(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers; what an older version of this package wrote is migrated, what a newer one wrote is a
        ValueError."""
        return super().from_dict(migrate(config_dict, CONFIG_MIGRATIONS, CONFIG_NAME), **kwargs)

    def validate_architecture(self):
        """Part of `@strict`'s validation: times lie in [0, 1], sizes are positive, the backbone names its family."""
        for name in ("edit_timestep", "context_timestep"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value <= 1:
                raise ValueError(f"{name} is a flow time in [0, 1], got {value}")
        for name in ("action_dim", "action_horizon", "action_hidden_size", "num_inference_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.edit_mode in ("joint", "imagine"):
            if self.context_timestep == "target":
                raise ValueError(
                    f"edit_mode={self.edit_mode!r} keeps one context for all image times: expected a fixed "
                    "context_timestep such as 0, got 'target'"
                )
            if self.edit_timestep != 0:
                raise ValueError(f"edit_mode={self.edit_mode!r} has no edit_timestep but 0, got {self.edit_timestep}")
        offsets = self.target_offsets
        if not offsets or offsets[0] < 1 or offsets != sorted(set(offsets)):
            raise ValueError(f"target_offsets must be rising steps ahead, at least 1, got {offsets}")
        if "family" not in self.backbone:
            raise ValueError(f"backbone must name its family, got the keys {sorted(self.backbone)}")

    @property
    def inference_context_timestep(self) -> float:
        """The time that modulates context tokens at inference."""
        return self.edit_timestep if self.context_timestep == "target" else float(self.context_timestep)


__all__ = ["ImageWAMConfig"]
