"""What the import of a published checkpoint needs to know of an editing family."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from .published_weights import Weights

Reference = dict[str, str | None]


class PublishedFamily(ABC):
    """One family's published names, sizes and conventions.

    Names of editing weights are those below `mixtures.video.` and `editing_prefix`, names of action weights those
    below `mixtures.action.`. A weight that tells a size and is not there is a ValueError that names it.
    """

    family: ClassVar[str]
    # Settings that its checkpoints were trained with, see `ImageWAMConfig.from_preset`.
    preset: ClassVar[str] = "published"
    # Actions per chunk where nothing says otherwise.
    horizon: ClassVar[int] = 16
    # Height and width of RoboTwin's head camera on the canvas; the wrists' are half of it.
    robotwin_head: ClassVar[tuple[int, int]] = (192, 256)
    editing_prefix: ClassVar[str] = "transformer."
    # Prefixes that editing weights have in this family only.
    marks: ClassVar[tuple[str, ...]]
    # Weights stand in the file a second time below `mixtures.video.`: prefix there -> prefix of the editing weight.
    aliases: ClassVar[dict[str, str]]

    @abstractmethod
    def network_config(self, editing: Weights) -> dict[str, Any]:
        """The editing transformer's config, read off its weights."""

    @abstractmethod
    def editing_weights(self, editing: Weights, network: dict[str, Any]) -> Weights:
        """Editing weights in the names of `backbone.transformer`.

        Args:
            network: `network_config`, with what the caller knows better.
        """

    @abstractmethod
    def action_weights(self, action: Weights, network: dict[str, Any]) -> Weights:
        """Action weights in the names of `action_expert`, without those that `is_unused` tells."""

    @abstractmethod
    def mlp_width(self, action: Weights) -> int:
        """Hidden width of the action expert's MLPs, from what `action_weights` returned."""

    def published_name(self, own: str) -> str | None:
        """What the file calls the weight `own` of `backbone.transformer`, for errors; None where that is not known."""
        return None

    def published_action_name(self, own: str) -> str | None:
        """What the file calls the weight `own` of `action_expert`, for errors; None where that is not known."""
        return None

    def is_unused(self, name: str) -> bool:
        """Whether no computation reaches this action weight, so that the policy does without it."""
        return False

    @abstractmethod
    def backbone_options(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The family's options in `config.backbone` that reproduce the published computation.

        Args:
            settings: as `read_settings` returns them.
        """

    def target_offsets(self, settings: dict[str, Any], horizon: int) -> list[int]:
        """Steps to each target frame.

        Args:
            horizon: actions per chunk.
        """
        return [horizon]

    @abstractmethod
    def frozen_parts(self, network: dict[str, Any]) -> dict[str, Reference]:
        """Hub repos of "vae", "text_encoder" and "tokenizer"; {} where there are none in diffusers' layout."""
