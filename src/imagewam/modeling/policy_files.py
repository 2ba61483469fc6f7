"""Where a policy comes from and goes to: editing pipelines, checkpoint folders, the hub."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import CommitInfo, try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn
from transformers.utils import CONFIG_NAME, logging

from ..atomic import atomic_folder, atomic_write_text
from ..configuration_imagewam import ImageWAMConfig
from ..shipped import shipped_source
from ..upload import WEIGHT_FILES, upload_saved
from ..weight_files import check_weight_files
from .backbones import EditingBackbone, family_of_pipeline
from .frozen_parts import HOME_OPTIONS, save_frozen_part
from .memory import align_weights
from .weight_copy import copy_editing_weights

logger = logging.get_logger(__name__)

TIERS = {
    "A": "its own context sees no target",
    "B": "its context is kept from seeing the target by the tap",
    "C": "features only, there is no context without a target: actions see the keys of the noisy canvas",
}


class PolicyFiles:
    """Mixin of the policy, in front of `PreTrainedModel`."""

    config: ImageWAMConfig
    backbone: EditingBackbone
    quantized_weights: str | None

    @classmethod
    def from_config(cls, config: ImageWAMConfig, dtype: torch.dtype | None = None) -> Self:
        """A policy with fresh weights, at the size that the config says.

        With the default device "meta" it takes no memory: enough to count, to plan, and to check checkpoints against.

        Args:
            dtype: of its weights; the config's, or float32, by default.
        """
        return cls._from_config(config, **({} if dtype is None else {"dtype": dtype}))

    @classmethod
    def from_editing_pipeline(
        cls,
        pipeline: DiffusionPipeline | str | os.PathLike,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        preset: str = "paper",
        weight_copy: str | None = "auto",
        backbone_options: dict[str, Any] | None = None,
        **config_kwargs: Any,
    ) -> Self:
        """A policy on a diffusers editing pipeline: its transformer, its frozen parts, a weight-copied action expert.

        The log tells the family and its tier: "A" and "B" read the observation before there is a target, "C" sees it
        in the keys of the noisy canvas only. A pipeline without a family of its own gets the generic adapter of tier
        C, with a warning that says what it cannot do.

        Args:
            pipeline: the pipeline (the policy takes over its transformer object), or the folder or hub repo of one.
            revision: of the repo.
            dtype: of the policy and its frozen parts; what the pipeline has, or float32, by default.
            preset: `"paper"`, `"published"` or `"fastwam"`, see `ImageWAMConfig.from_preset`.
            weight_copy: how the action expert starts: `"per_segment"`, `"one_axis"` (the published way), None for
                fresh weights, or `"auto"`: per segment where the expert has the form of the editing blocks, else
                fresh.
            backbone_options: the family's own options, e.g. `{"rope_dtype": "model"}`.
            **config_kwargs: `action_dim`, `state_dim`, `action_horizon` and the rest of `ImageWAMConfig`.

        Raises:
            ValueError: no family serves the pipeline (the message says why), or its family cannot do what is asked.
        """
        if weight_copy not in ("auto", "per_segment", "one_axis", None):
            raise ValueError(f"weight_copy is 'auto', 'per_segment', 'one_axis' or None, got {weight_copy!r}")
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        source = getattr(pipeline, "name_or_path", None)
        family = family_of_pipeline(pipeline, revision)
        weight_copy = _weight_copy(family, weight_copy)
        if isinstance(pipeline, (str, os.PathLike)):
            source = str(pipeline)
            pipeline = family.load_pipeline(source, revision, dtype)
            for module in pipeline.components.values():
                if isinstance(module, nn.Module):
                    align_weights(module)
        transformer = family.network_of(pipeline)
        backbone = {**family.backbone_config(pipeline), **(backbone_options or {})}
        config = ImageWAMConfig.from_preset(preset, backbone=backbone, **config_kwargs)
        family.measure(pipeline, config)
        policy = cls(config, transformer)
        if weight_copy is not None:
            per_segment = weight_copy == "per_segment"
            copy_editing_weights(policy.action_expert, transformer, per_segment=per_segment)
        policy.to(transformer.device, transformer.dtype)
        policy.backbone.attach_pipeline(pipeline, source, revision)
        return policy if dtype is None else policy.to(dtype)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """Load a checkpoint folder, hub repo or policy that comes with the package. As in transformers, but a weight
        that is missing, unexpected, of another shape or unreadable is an error, whatever `ignore_mismatched_sizes`
        says: a policy with a few random tensors still moves a robot.

        A `device_map` may keep weights in the CPU's memory or on disk; frozen parts are loaded where the policy
        computes. Those in the checkpoint's own folder or repo come with its `subfolder`, `token` and cache.

        Args:
            kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, `force_download` and the rest
                of transformers'.

        Raises:
            ValueError: names of the weights that did not match; or the `device_map` has the policy compute on several
                devices; or a newer version of this package wrote config.json.
            OSError: the file that could not be read.
        """
        path = shipped_source(pretrained_model_name_or_path)
        kwargs["ignore_mismatched_sizes"] = True  # they are told below, with their shapes
        try:
            policy, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
            folder = _loaded_folder(path, kwargs)
            if folder is not None:
                check_weight_files(folder)
            if isinstance(error, SafetensorError):
                raise OSError(f"a weight file of {path} is corrupt or truncated: {error}") from error
            raise
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[kind]:
                raise ValueError(f"{path} does not fit its own config.json: {kind} {sorted(info[kind])}")
        align_weights(policy)
        policy.backbone.home_options = {name: kwargs[name] for name in HOME_OPTIONS if kwargs.get(name) is not None}
        policy.backbone.finish_loading()
        policy._settle_device_map()
        return (policy, info) if output_loading_info else policy

    def _settle_device_map(self) -> None:
        """Tell the frozen parts, and whoever asks for the policy's device, where offloaded weights compute."""
        device_map = getattr(self, "hf_device_map", None) or {}
        devices = {torch.device(place) for place in device_map.values() if place not in ("cpu", "disk")}
        if len(devices) > 1:
            raise ValueError(
                "the actions attend to keys of every editing layer, so that a policy computes on one device, got a "
                f"device_map with {sorted(map(str, devices))}: use device_map={{'': device}}, 'cpu' or 'disk' for "
                "modules whose weights do not fit, or max_memory of one device and the CPU"
            )
        if device_map and any(weight.is_meta for weight in self.parameters()):
            self.backbone.compute_device = devices.pop() if devices else torch.device("cpu")

    @property
    def homeless_frozen_parts(self) -> list[str]:
        """The frozen parts that no hub repo is known to hold."""
        references = self.config.frozen_parts
        return [name for name in self.backbone.frozen_loaders if not (references.get(name) or {}).get("repo")]

    def check_frozen_references(self, saved: Collection[str] = ()) -> None:
        """Make sure that a checkpoint could find the frozen parts again that are not `saved` with it.

        Raises:
            ValueError: one of them has no hub repo to refer to.
        """
        homeless = [name for name in self.homeless_frozen_parts if name not in saved]
        if homeless:
            raise ValueError(
                f"the frozen parts {homeless} were not loaded from a hub repo, so a checkpoint cannot refer to them; "
                "save with save_frozen=True, or name a repo in policy.config.frozen_parts"
            )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        save_frozen: bool | Collection[str] = False,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """Write the checkpoint folder: whole, or not at all.

        Args:
            save_frozen: also write VAE and text encoder into `frozen/`, so that the folder needs nothing else; or the
                names of those to write.

        Raises:
            ValueError: a frozen part that is not written has no hub repo to refer to; or the policy's own weights, in
                whose place no `state_dict` is given, are quantised.
        """
        if self.quantized_weights is not None and kwargs.get("state_dict") is None:
            raise ValueError(
                f"the weights of this policy's editing blocks are quantised to {self.quantized_weights}, and a "
                "checkpoint holds whole ones: save the policy before, and quantise it whenever it is loaded"
            )
        saved = self._frozen_to_save(save_frozen)
        self.check_frozen_references(saved)
        references = self.config.frozen_parts
        with atomic_folder(save_directory, replaces=("model*.safetensors", "model.safetensors.index.json")) as staging:
            try:
                self.config.frozen_parts = self._save_frozen(staging, saved)
                dtype = _saved_dtype(kwargs.get("state_dict"))  # asked for now: the base class empties it
                super().save_pretrained(staging, **kwargs)
                if dtype is not None:
                    _name_dtype(staging, dtype)
            finally:
                self.config.frozen_parts = references
        if push_to_hub:
            self.push_to_hub(Path(save_directory).name, save_frozen=save_frozen)

    def push_to_hub(
        self, repo_id: str, *, save_frozen: bool | Collection[str] = False, max_shard_size="50GB", **kwargs
    ) -> CommitInfo:
        """Upload what `save_pretrained` writes, in place of former weights; all else in the repo stays as it is.
        `imagewam.hub.push_checkpoint` uploads a folder with processor, model card and results, in one commit.

        Args:
            **kwargs: `commit_message`, `private`, `token`, `revision`, `create_pr`.
        """

        def save(folder: str) -> None:
            self.save_pretrained(folder, save_frozen=save_frozen, max_shard_size=max_shard_size)

        return upload_saved(save, repo_id, **{"commit_message": "Upload policy", "replaces": WEIGHT_FILES, **kwargs})

    def _frozen_to_save(self, save_frozen: bool | Collection[str]) -> Collection[str]:
        known = tuple(self.backbone.frozen_loaders)
        names = (known if save_frozen else ()) if isinstance(save_frozen, bool) else save_frozen
        if unknown := set(names) - set(known):
            raise ValueError(f"this policy has the frozen parts {known}, not {sorted(unknown)}")
        return names

    def _save_frozen(self, folder: str, names: Collection[str]) -> dict[str, dict]:
        references = dict(self.config.frozen_parts)
        for name in names:
            save_frozen_part(self.backbone.frozen_part(name), os.path.join(folder, "frozen", name))
            references[name] = {"repo": None, "subfolder": f"frozen/{name}", "revision": None}
        return references


def _loaded_folder(source: str | os.PathLike, options: Mapping[str, Any]) -> Path | None:
    """The folder here, of a repo that in the cache, that `from_pretrained` reads weights from; None if none is."""
    subfolder = options.get("subfolder") or ""
    if os.path.isdir(source):
        return Path(source, subfolder)
    names = ("revision", "cache_dir")
    found = try_to_load_from_cache(
        str(source), f"{subfolder}/{CONFIG_NAME}".lstrip("/"), **{name: options.get(name) for name in names}
    )
    return Path(found).parent if isinstance(found, str) else None


def _saved_dtype(weights: Mapping[str, torch.Tensor] | None) -> torch.dtype | None:
    """Precision of weights that are saved in place of the policy's own; None where there are none."""
    return None if weights is None else next(x.dtype for x in weights.values() if x.is_floating_point())


def _name_dtype(folder: str, dtype: torch.dtype) -> None:
    """Let config.json name the precision of the weights beside it, in which they are loaded again."""
    path = Path(folder, CONFIG_NAME)
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    atomic_write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _weight_copy(family: type[EditingBackbone], asked: str | None) -> str | None:
    """How the action expert starts on this family, said in the log with the family's tier."""
    if asked not in ("auto", None) and not family.copies_weights:
        raise ValueError(
            f"the action expert of {family.family} has not the form of its editing blocks and cannot start as a copy "
            f"of them: expected weight_copy 'auto' or None, got {asked!r}"
        )
    if asked == "auto":
        asked = "per_segment" if family.copies_weights else None
    start = "fresh weights" if asked is None else f"editing weights, {asked}"
    tell = logger.info if family.copies_weights and family.tier != "C" else logger.warning
    tell(f"{family.family}: tier {family.tier}, {TIERS[family.tier]}. The action expert starts with {start}.")
    return asked
