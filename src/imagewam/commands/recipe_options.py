"""What a recipe was meant for: variant, GPUs, engine, effective batch. Checked when it is loaded, and at launch."""

from dataclasses import dataclass
from typing import Literal

from transformers import TrainingArguments

from ..configuration_imagewam import PRESETS
from ..inference.variants import VARIANTS, Variant
from ..training.engines import engine_of
from .options import option
from .policy_options import PolicyOptions


@dataclass
class RecipeOptions:
    """What a recipe was meant for, and its plan."""

    _argument_group_name = "recipe"

    variant: str | None = option(f"Published variant that the recipe trains: {', '.join(VARIANTS)}.")
    num_gpus: int | None = option("GPUs that the recipe is meant for, one process each; another number is an error.")
    engine: Literal["single", "ddp", "fsdp2", "zero1", "zero2"] | None = option(
        "What divides the work among them: single, ddp, fsdp2, zero1 or zero2; another one is an error."
    )
    effective_batch: int | None = option(
        "Samples per optimiser step: per_device_train_batch_size x gradient_accumulation_steps x num_gpus."
    )
    gpu_memory: float | None = option("GiB of each of these GPUs, for the plan.")
    dry_run: bool = option("Print the plan of model, data, memory and steps from arithmetic; train nothing.", False)
    plan_output: str | None = option("dry_run: FILE.json for the plan's numbers.")
    plan_text_tokens: int = option("dry_run: tokens of the longest instruction of a batch, in its prompt.", 64)
    tflops: float | None = option(
        "dry_run: sustained TFLOP/s of a GPU (its peak times the MFU), for the days that the run takes."
    )


def check_recipe(recipe: RecipeOptions, policy: PolicyOptions, args: TrainingArguments, horizon: int | None) -> None:
    """Raise ValueError where a recipe contradicts itself.

    Args:
        horizon: actions per chunk; None where only the dataset tells.
    """
    _check_values(recipe, args)
    _check_engine(recipe)
    if recipe.effective_batch is not None and recipe.effective_batch != _batch(args, recipe.num_gpus or 1):
        raise ValueError(f"effective_batch is {recipe.effective_batch}, but {_product(args, recipe.num_gpus or 1)}")
    if recipe.variant is not None:
        _check_variant(recipe.variant, policy, horizon)


def _check_values(recipe: RecipeOptions, args: TrainingArguments) -> None:
    positive = {
        "num_gpus": recipe.num_gpus,
        "gpu_memory": recipe.gpu_memory,
        "plan_text_tokens": recipe.plan_text_tokens,
        "tflops": recipe.tflops,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "num_train_epochs": args.num_train_epochs,
        "learning_rate": args.learning_rate,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be more than 0, got {value}")


def _check_engine(recipe: RecipeOptions) -> None:
    if (recipe.engine == "single") != (recipe.num_gpus == 1) and recipe.engine and recipe.num_gpus:
        raise ValueError(f"engine {recipe.engine} on num_gpus {recipe.num_gpus}: one GPU is `single`, several are not")


def _check_variant(name: str, policy: PolicyOptions, horizon: int | None) -> None:
    variant = _variant(name)
    repos = {other.repo: other.name for other in VARIANTS.values()}
    found = repos.get(policy.pipeline)
    if found is not None and variant.repo != policy.pipeline:
        raise ValueError(f"variant {name} stands on {variant.repo}, but pipeline is {policy.pipeline} ({found})")
    preset = policy.preset or "paper"
    allowed = ("fastwam",) if variant.preset == "fastwam" else tuple(p for p in PRESETS if p != "fastwam")
    if preset not in allowed:
        raise ValueError(f"variant {name} has the preset {' or '.join(allowed)}, got {preset}")
    offsets = policy.target_offsets or PRESETS[preset].get("target_offsets")
    if offsets and horizon and offsets[-1] != horizon:
        raise ValueError(
            f"the last of target_offsets is {offsets[-1]} steps ahead, but horizon is {horizon}: a {name} policy "
            "predicts the frame at the end of its actions"
        )


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"no such variant: {name}; there are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def check_launch(recipe: RecipeOptions, args: TrainingArguments) -> None:
    """Raise ValueError unless this run has the GPUs and the engine that its recipe is meant for."""
    if recipe.num_gpus is not None and recipe.num_gpus != args.world_size:
        raise ValueError(
            f"the recipe is meant for num_gpus {recipe.num_gpus} ({_product(args, recipe.num_gpus)}), this launch has "
            f"{args.world_size} process(es) ({_product(args, args.world_size)}): start that many with `accelerate "
            "launch`, or give other --num_gpus, --gradient_accumulation_steps and --effective_batch"
        )
    engine = engine_of(args)
    if recipe.engine is not None and recipe.engine != engine:
        raise ValueError(f"the recipe is meant for engine {recipe.engine}, this launch runs {engine}")


def _batch(args: TrainingArguments, num_gpus: int) -> int:
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * num_gpus


def _product(args: TrainingArguments, num_gpus: int) -> str:
    """How the effective batch comes about."""
    return (
        f"{args.per_device_train_batch_size} per GPU x {args.gradient_accumulation_steps} accumulated x {num_gpus} "
        f"GPU(s) = {_batch(args, num_gpus)} samples per step"
    )
