"""`imagewam train`: from a LeRobot folder and an editing pipeline to a policy, compared with two baselines."""

from collections.abc import Sequence

from transformers import set_seed

from .. import ImageWAMForActionPrediction, ImageWAMProcessor
from ..data.lerobot_dataset import LeRobotDataset
from ..data.statistics import compute_statistics
from ..demo.fitted_pipeline import fitted_tiny_pipeline
from ..training.arguments import ImageWAMTrainingArguments
from ..training.baselines import Baseline, matching_state_index, mean_action, repeat_state
from ..training.checkpoints import last_complete_checkpoint
from ..training.lora import add_adapters, merge_adapters
from ..training.precomputed import PrecomputedCollator
from ..training.trainer import ImageWAMTrainer
from .options import parse_options, show_table
from .train_options import DataOptions, PolicyOptions, action_chunks, given_options


def main(argv: Sequence[str]) -> None:
    """Train, save policy and processor into the output folder, print held-out action errors."""
    data, policy_options, args = parse_options(
        (DataOptions, PolicyOptions, ImageWAMTrainingArguments), argv, "train", __doc__
    )
    if args.resume_from_checkpoint == "last":
        args.resume_from_checkpoint = last_complete_checkpoint(args.output_dir)
    trainer = build_trainer(data, policy_options, args)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    save_policy(trainer)
    if trainer.eval_dataset is not None:
        trainer.args.max_eval_samples = None  # the closing table is over every held-out chunk
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
        if trainer.is_world_process_zero():
            show_table(comparison(metrics, trainer.baselines))


def build_trainer(data: DataOptions, options: PolicyOptions, args: ImageWAMTrainingArguments) -> ImageWAMTrainer:
    """Everything that `main` trains with, checked."""
    set_seed(args.seed)
    train, held_out = data.load()
    # Adapters are resumed on the policy that they were put on; a whole policy is resumed from its own checkpoint.
    checkpoint = options.checkpoint if options.lora_rank else args.resume_from_checkpoint or options.checkpoint
    policy, processor = load_policy(data, options, checkpoint, train, args.seed)
    if options.lora_rank:
        policy = add_adapters(policy, options.lora_rank)
    contract = processor.contract
    datasets = [dataset for dataset in (train, held_out) if dataset is not None]
    collator = PrecomputedCollator(policy, processor, datasets) if data.precompute else None
    return ImageWAMTrainer(
        model=policy,
        args=args,
        processing_class=processor,
        train_dataset=action_chunks(train, contract, with_images=not data.precompute),
        eval_dataset=action_chunks(held_out, contract, with_images=not data.precompute),
        data_collator=collator,
        train_statistics=compute_statistics(train, contract.horizon, contract.action.relative_to_state),
        baselines=dataset_baselines(train, contract.horizon),
    )


def save_policy(trainer: ImageWAMTrainer) -> None:
    """The trained policy into the output folder, adapters merged into it."""
    trainer.model = merge_adapters(trainer.model)
    trainer.save_model()


def load_policy(
    data: DataOptions, options: PolicyOptions, checkpoint: str | None, dataset: LeRobotDataset, seed: int
) -> tuple[ImageWAMForActionPrediction, ImageWAMProcessor]:
    """Policy and processor of a checkpoint, or new ones on an editing pipeline with the dataset's contract."""
    if checkpoint:
        if options.checkpoint and (
            given := given_options(data, data.CONTRACT) + given_options(options, options.CONFIG)
        ):
            raise ValueError(f"{', '.join(given)}: already settled by the checkpoint {checkpoint}")
        return ImageWAMForActionPrediction.from_pretrained(checkpoint), ImageWAMProcessor.from_pretrained(checkpoint)
    if not options.pipeline:
        raise ValueError("nothing to start from: give --pipeline or --checkpoint")
    contract = data.contract(dataset)
    pipeline = options.pipeline
    if pipeline == "tiny":
        pipeline = fitted_tiny_pipeline(dataset, contract, options.tiny_vae_steps, seed)
    policy = ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline,
        preset=options.preset,
        action_dim=dataset.action_dim,
        state_dim=dataset.state_dim,
        action_horizon=contract.horizon,
        **options.config(),
    )
    statistics = compute_statistics(dataset, contract.horizon, contract.action.relative_to_state)
    return policy, ImageWAMProcessor.for_policy(policy, contract=contract, statistics=statistics)


def dataset_baselines(dataset: LeRobotDataset, horizon: int) -> dict[str, Baseline]:
    """The mean action; and the repeated state, where every action dimension has a namesake in the state."""
    baselines = {"mean_action": mean_action(compute_statistics(dataset, horizon)["action"]["mean"])}
    state_index = matching_state_index(dataset.state_names, dataset.action_names)
    if state_index is not None:
        baselines["repeat_state"] = repeat_state(state_index)
    return baselines


def comparison(metrics: dict[str, float], baselines: dict[str, Baseline]) -> list[list[str]]:
    """Rows of the closing table: mean absolute action error in physical units over whole held-out chunks."""
    policy = metrics["eval_action_mae"]
    rows = [["held-out action error", "mean absolute", "policy / it"], ["policy", f"{policy:.5f}", ""]]
    for name in baselines:
        error = metrics[f"eval_{name}_mae"]
        rows.append([name.replace("_", " "), f"{error:.5f}", f"{policy / error:.2f}"])
    if "repeat_state" not in baselines:
        rows.append(["repeat state", "-", "states and actions are of different names"])
    return rows
