"""The policy that `imagewam train` starts from: built on a pipeline, or opened to go on."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

import torch
from transformers.utils import CONFIG_NAME

from .. import ImageWAMConfig, ImageWAMForActionPrediction, ImageWAMProcessor
from ..configuration_imagewam import PRESETS
from ..data.statistics import compute_statistics
from ..data.training_data import training_data_of
from ..tiny.base import fitted_tiny_pipeline
from .data_options import DataOptions, Recording, Recordings, contract_options
from .options import given_options
from .policy_options import PolicyOptions

Start = tuple[ImageWAMForActionPrediction, ImageWAMProcessor]


def starting_policy(
    data: DataOptions, options: PolicyOptions, resume_from: str | None, recordings: Recordings, seed: int
) -> Start:
    """Policy and processor, on the CPU.

    Args:
        recordings: to be trained on, all of one robot.

    Raises:
        ValueError: nothing to start from, or options that contradict the checkpoint.
        ContractMismatchError: adapters are resumed on other recordings than they were trained on.
    """
    if options.checkpoint:
        settled = data.settled_by_checkpoint + given_options(options, [*options.BUILD, *options.CONFIG])
        # A starting checkpoint does not know the dataset yet.
        if settled and (settled != ["dataset_repo"] or _is_trained(options.checkpoint)):
            raise ValueError(f"{', '.join(settled)}: already settled by the checkpoint {options.checkpoint}")
    elif not (options.pipeline or resume_from):
        raise ValueError("nothing to start from: give --pipeline or --checkpoint")
    if resume_from:
        check_resumed(data, options, resume_from, recordings[0])
    # Adapters are resumed on the policy that they were put on; a whole policy is resumed from its own checkpoint.
    checkpoint = options.checkpoint if options.lora_rank else resume_from or options.checkpoint
    if checkpoint:
        policy = ImageWAMForActionPrediction.from_pretrained(checkpoint, dtype=getattr(torch, options.dtype))
        processor = ImageWAMProcessor.from_pretrained(checkpoint)
        data.check_policy(processor.contract, checkpoint)
        if not processor.has_statistics:
            processor = completed(processor, data, recordings)
            if resume_from:
                check_adapters(processor, resume_from)
    elif options.pipeline:
        policy, processor = new_policy(data, options, recordings, seed)
        if resume_from:
            check_adapters(processor, resume_from)
    else:
        raise ValueError("adapters are resumed on the policy that they were put on: give --pipeline or --checkpoint")
    if options.attn_implementation:
        policy.set_attn_implementation(options.attn_implementation)
    return policy, processor


def new_policy(data: DataOptions, options: PolicyOptions, recordings: Recordings, seed: int) -> Start:
    """Policy and processor on an editing pipeline, with the recordings' contract and statistics."""
    dataset = recordings[0]
    preset = options.preset or "paper"
    contract = data.contract(dataset, horizon=PRESETS[preset].get("action_horizon", 16))
    pipeline = options.pipeline
    if pipeline == "tiny":
        steps = 400 if options.tiny_vae_steps is None else options.tiny_vae_steps
        pipeline = fitted_tiny_pipeline(dataset, contract, steps, seed)
    dtype = getattr(torch, options.dtype)
    policy = ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline,
        revision=options.pipeline_revision,
        dtype=dtype,
        preset=preset,
        weight_copy=options.weight_copy or "auto",
        backbone_options=options.backbone(),
        action_dim=dataset.action_dim,
        state_dim=dataset.state_dim,
        action_horizon=contract.horizon,
        **options.config(),
    ).to(dtype)
    statistics = compute_statistics(recordings, contract.horizon, contract.action.relative_to_state)
    return policy, ImageWAMProcessor.for_policy(
        policy, contract=contract, statistics=statistics, training_data=training_data_of(recordings)
    )


def _is_trained(checkpoint: str) -> bool:
    return ImageWAMProcessor.from_pretrained(checkpoint).has_statistics


def completed(processor: ImageWAMProcessor, data: DataOptions, recordings: Recordings) -> ImageWAMProcessor:
    """The processor of a starting checkpoint with what the recordings tell: statistics, frame rate, their name, and
    the names of dimensions where the preset leaves them to the robot."""
    dataset, contract = recordings[0], processor.contract
    contract = dataclasses.replace(
        contract, fps=contract.fps or dataset.fps, dataset=contract.dataset or data.dataset_name(dataset)
    )
    if data.preset is not None and data.preset.keeps_names:
        mine = (contract.state.names, contract.action.names)
        if mine == (data.preset.state.names, data.preset.action.names):
            contract = dataclasses.replace(
                contract,
                state=dataclasses.replace(contract.state, names=dataset.state_names),
                action=dataclasses.replace(contract.action, names=dataset.action_names),
            )
    statistics = compute_statistics(recordings, contract.horizon, contract.action.relative_to_state)
    return processor.with_statistics(statistics, contract, training_data_of(recordings))


def check_adapters(processor: ImageWAMProcessor, resume_from: str) -> None:
    """Raise ContractMismatchError unless the adapters that are resumed learned with this processor's numbers."""
    resumed = ImageWAMProcessor.from_pretrained(resume_from)
    resumed.check_statistics(processor.statistics, training_data=processor.training_data)


def check_resumed(data: DataOptions, options: PolicyOptions, checkpoint: str, dataset: Recording) -> None:
    """Raise ValueError if a given option is not what the resumed run was started with."""
    given, saved = {}, {}
    names = given_options(data, data.CONTRACT) if options.checkpoint else data.settled
    if names:
        horizon = PRESETS.get(options.preset, {}).get("action_horizon")
        mine = contract_options(data.contract(dataset, horizon))
        theirs = contract_options(ImageWAMProcessor.from_pretrained(checkpoint).contract)
        given, saved = {name: mine[name] for name in names}, {name: theirs[name] for name in names}
    config = ImageWAMConfig.from_json_file(Path(checkpoint, CONFIG_NAME))
    settings = {**PRESETS.get(options.preset, {}), **options.config()}
    settings.pop("action_horizon", None)  # compared as the contract's horizon, which may overrule the preset
    given |= settings
    saved |= {name: getattr(config, name) for name in settings}
    given |= options.backbone()
    saved |= {name: config.backbone.get(name) for name in options.backbone()}
    changed = [f"{name}: {given[name]} is given, {saved[name]} in it" for name in given if given[name] != saved[name]]
    if changed:
        raise ValueError(f"the run of {checkpoint} was started with other options: {'; '.join(changed)}")


def frozen_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Of weights that are not trained: half of the memory will do for them on a GPU."""
    return getattr(torch, name or ("float32" if device.type == "cpu" else "bfloat16"))


def cast_frozen_parts(
    policy: ImageWAMForActionPrediction, dtype: str | None, device: torch.device, without: Collection[str] = ()
) -> None:
    """Load VAE and text encoder, or those of them that training needs, and cast them."""
    for name in set(policy.backbone.frozen_loaders) - set(without):
        policy.backbone.frozen_part(name).to(frozen_dtype(dtype, device))
