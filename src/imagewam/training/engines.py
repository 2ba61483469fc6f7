"""What divides the work of a run among its processes."""

import os

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments


def engine_of(args: TrainingArguments) -> str:
    """`single`, `ddp`, `fsdp1`, `fsdp2`, `zero1`, `zero2` or `zero3`: that of this launch."""
    if args.deepspeed_plugin is not None:
        return f"zero{args.deepspeed_plugin.zero_stage}"
    if args.fsdp_plugin_args is not None:
        return f"fsdp{args.fsdp_plugin_args['fsdp_version']}"
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return f"fsdp{os.environ.get('FSDP_VERSION', '1')}"  # accelerate's own default
    return "ddp" if args.world_size > 1 else "single"
