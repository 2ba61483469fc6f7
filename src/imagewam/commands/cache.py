"""`imagewam cache`: fill the caches that `imagewam train` with the same recipe reads, in a process of its own.

A process that is stopped leaves what it had finished, and several may fill the same caches together. What the recipe
says of GPUs, engine and plan is for the training alone. Where there is no GPU, give `--use_cpu true`, and the
`--frozen_dtype` of the training (bfloat16 on a GPU): it is part of what a cache is found by.
"""

from collections.abc import Sequence

from transformers import set_seed

from ..training.arguments import ImageWAMTrainingArguments
from ..training.precomputed import PrecomputedCollator
from .cache_options import CacheOptions, check_caches
from .data_options import DataOptions
from .options import parse_options
from .policy_options import PolicyOptions
from .recipe_options import RecipeOptions
from .starting_policy import cast_frozen_parts, frozen_dtype, starting_policy


def main(argv: Sequence[str]) -> None:
    """Fill them and say what was cached."""
    data, options, recipe, caches, args = parse_options(
        (DataOptions, PolicyOptions, RecipeOptions, CacheOptions, ImageWAMTrainingArguments), argv, "cache", __doc__
    )
    if recipe.dry_run:
        raise ValueError(
            "dry_run is the plan of a training, and no cache is filled by it: give it to `imagewam train`"
        )
    if not (caches.cache_frames or caches.cache_instructions or data.precompute):
        raise ValueError("nothing to cache: give --cache_frames, --cache_instructions or --precompute")
    check_caches(data, caches)
    set_seed(args.seed)
    train, held_out = data.load()
    datasets = [*train, *held_out]
    policy, processor = starting_policy(data, options, None, train, args.seed)
    cached = [caches.frames(dataset, processor.contract) for dataset in datasets] if caches.cache_frames else []
    if data.precompute or caches.cache_instructions:
        policy.to(args.device)
    if data.precompute:
        cast_frozen_parts(policy, options.frozen_dtype, args.device)
        PrecomputedCollator(policy, processor, datasets, caches.cache_dir)
    caches.instructions(policy, processor, datasets, frozen_dtype(options.frozen_dtype, args.device))
    for dataset, frames in zip(datasets, cached, strict=False):
        print(f"{len(dataset)} rows of {dataset.root}: {frames.num_bytes / 2**20:.0f} MiB of frames")
    print("all caches that the recipe asks for are filled")
