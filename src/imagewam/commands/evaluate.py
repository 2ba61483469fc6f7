"""`imagewam evaluate BENCHMARK`: a policy in a simulator, a file per episode; merge, replay, real, card beside it.

`imagewam evaluate metaworld --checkpoint POLICY --output FOLDER`. The same command goes on where it was cut off;
`--shard 0/4` plays every fourth episode, and `imagewam evaluate merge --output FOLDER --shards A B C D` joins them.
Under `accelerate launch` every process is a shard. `imagewam evaluate replay --benchmark metaworld --dataset RECORDED
--checkpoint POLICY` plays recorded actions through the policy's processor: to be run first. `imagewam evaluate real`
has a person judge trials on a robot; `imagewam evaluate card` writes finished results into a checkpoint's model card.
"""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from .. import ImageWAMForActionPrediction, ImageWAMProcessor, __version__
from ..atomic import atomic_write_text
from ..data.lerobot_dataset import LeRobotDataset
from ..evaluation.benchmarks import BENCHMARKS, Benchmark
from ..evaluation.env_worker import EnvWorker
from ..evaluation.environment import EnvironmentSpec
from ..evaluation.environment_contract import check_environment
from ..evaluation.episode_files import EpisodeFiles, parse_shard
from ..evaluation.films import write_film
from ..evaluation.policy_predictor import PolicyPredictor
from ..evaluation.recorded_episodes import read_recorded_episodes
from ..evaluation.replay import ReplayedEpisode, check_recording, disagreements, replay_episode
from ..evaluation.report import write_report
from ..evaluation.robotwin_policy import install_policy
from ..evaluation.rollout import Episode, EpisodeRecord, Trace, run_rollouts
from ..hub.model_card import add_evaluation, check_card_folder
from ..modeling.weights_hash import weights_hash
from . import evaluate_real
from .options import option, parse_options, show_table

OTHERS = ("merge", "replay", "real", "card")
SUBSETS = "; ".join(f"{name}: {', '.join(found.subsets)}" for name, found in BENCHMARKS.items() if found.subsets)


@dataclass
class EvaluateOptions:
    """What is played, by whom, and where the results go."""

    what: str = field(metadata={"help": f"{', '.join((*BENCHMARKS, *OTHERS))}."})
    output: str | None = option("Folder of the evaluation; for replay a FILE.json.")
    checkpoint: str | None = option("Policy: repo or folder.")
    revision: str | None = option("Its revision on the hub.")
    embodiment: str | None = option("Robot of a policy that drives several.")
    benchmark: str | None = option(f"replay: {' or '.join(BENCHMARKS)}.")
    dataset: str | None = option("replay: dataset that `imagewam record` or `train-tiny` wrote.")
    shards: list[str] | None = option("merge: folders to join.")
    card: bool = option("Write the finished results into the model card of the checkpoint, which is a folder.", False)
    tasks: list[str] | None = option("Tasks or suites of the benchmark; default: those of its full protocol.")
    subset: str | None = option(f"Named part of the benchmark. {SUBSETS}")
    trials: int | None = option("Start positions per task; default: the full protocol's.")
    environment: str | None = option('Settings of the environment, as JSON: {"image_size": 128}.')
    python: str | None = option("Interpreter of a simulator that is not installed beside torch.")
    replan_steps: int | None = option("Actions executed of each chunk; default: all of it.")
    num_inference_steps: int | None = option("Euler steps (as the policy says).")
    workers: int = option("Simulators that run at once.", 2)
    batch_size: int | None = option("Rows of every policy call, filled up; part of the result's last bits (workers).")
    timeout: float = option("Seconds that a simulator may take for a reset or a chunk before it is restarted.", 600.0)
    shard: str | None = option("INDEX/COUNT: play every COUNT-th episode from the INDEX-th on.")
    films: int = option("Episodes per task that are filmed.", 0)
    foreseen: bool = option("In films, show the frame that the policy foresees beside the scene.", False)
    install: str | None = option("robotwin: play nothing, but write a policy for its own loop into this checkout.")
    seed: int = option("Of the policy's noise.", 0)
    device: str | None = option("Where the policy computes; default: cuda where there is one.")
    dtype: Literal["float32", "bfloat16", "float16"] = option("Precision.", "float32")


def main(argv: Sequence[str]) -> None:
    """Play, join, check, judge trials on a robot, or write finished results into a model card."""
    if argv and argv[0] == "real":
        return evaluate_real.main(argv[1:])
    words = ["--what", *argv] if argv and not argv[0].startswith("-") else list(argv)
    (options,) = parse_options((EvaluateOptions,), words, "evaluate", __doc__)
    if options.what == "merge":
        return merge(options)
    if options.what == "card":
        _require(options, "checkpoint", "output")
        return _card(options, options.output)
    name = options.benchmark if options.what == "replay" else options.what
    if name not in BENCHMARKS:
        known = f"{', '.join(BENCHMARKS)}, {', '.join(OTHERS[:-1])} and {OTHERS[-1]}"
        raise ValueError(f"there is no benchmark {name!r}: there are {known}")
    if options.install is not None:
        if options.what != "robotwin":
            raise ValueError(f"only RoboTwin loads policies into its own loop, {options.what} has no --install")
        return print(f"written: {install_policy(options.install, options.checkpoint)}")
    _require(options, "checkpoint")
    return (replay if options.what == "replay" else play)(options, BENCHMARKS[name])


def play(options: EvaluateOptions, benchmark: Benchmark) -> None:
    """All missing episodes of this shard, then the report if none is missing any more."""
    _require(options, "output")
    settings = json.loads(options.environment or "{}")
    benchmark = benchmark.opened(settings, options.output)
    if options.card:
        check_card_folder(options.checkpoint)
    episodes = benchmark.episodes(options.tasks, options.trials, options.subset)
    shard, device = _shard_and_device(options)
    processor = ImageWAMProcessor.from_pretrained(
        options.checkpoint, revision=options.revision, embodiment=options.embodiment
    )
    policy = ImageWAMForActionPrediction.from_pretrained(
        options.checkpoint, revision=options.revision, dtype=getattr(torch, options.dtype)
    )
    predictor = PolicyPredictor(
        policy.to(device),
        processor,
        num_inference_steps=options.num_inference_steps,
        seed=options.seed,
        batch_size=options.batch_size or options.workers,
    )
    with ExitStack() as stack:
        settings = {"python": options.python, **settings, **benchmark.settings}
        workers = [stack.enter_context(EnvWorker(benchmark.factory, **settings)) for _ in range(options.workers)]
        spec = workers[0].describe()
        predictor.check_environment(spec)
        found = benchmark.prepare(workers, episodes, options.timeout)
        files = EpisodeFiles(options.output, _settings(options, benchmark, spec, predictor, found), episodes)
        missing = files.missing(shard)
        total = len(episodes[shard[0] :: shard[1]])
        print(f"{len(missing)} of {total} episodes to play, results in {options.output}", flush=True)

        def keep(record: EpisodeRecord, trace: Trace | None) -> None:
            record = replace(record, labels=benchmark.labels.get(record.task, {}))
            if trace is not None:
                path = files.path(Episode(record.task, record.seed)).with_suffix(".mp4")
                write_film(path, trace, record, predictor if options.foreseen else None, spec.fps)
            files.write(record)

        run_rollouts(
            predictor,
            workers,
            missing,
            replan_steps=options.replan_steps or processor.contract.horizon,
            step_limit=benchmark.step_limits,
            traced=[episode for episode in missing if episode.seed < benchmark.first_seed + options.films],
            timeout=options.timeout,
            on_record=keep,
        )
    if left := files.missing():
        print(f"{len(left)} episodes are left to other shards; the last one writes the report")
    else:
        _report(files, options)


def merge(options: EvaluateOptions) -> None:
    """Join the folders of shards that were played on machines without a common file system."""
    _require(options, "output", "shards", *(("checkpoint",) if options.card else ()))
    shards = [EpisodeFiles.open(folder) for folder in options.shards]
    files = EpisodeFiles(options.output, shards[0].settings, shards[0].episodes)
    files.take_over(shards)
    if missing := files.missing():
        raise ValueError(f"{len(missing)} of {len(files.episodes)} episodes are in no shard, such as {missing[0]}")
    _report(files, options)


def replay(options: EvaluateOptions, benchmark: Benchmark) -> None:
    """Recorded actions through the processor: exits with 1 when an episode does not go as it was recorded."""
    _require(options, "dataset")
    processor = ImageWAMProcessor.from_pretrained(
        options.checkpoint, revision=options.revision, embodiment=options.embodiment
    )
    dataset = LeRobotDataset(options.dataset)
    with EnvWorker(benchmark.factory, python=options.python, **json.loads(options.environment or "{}")) as worker:
        spec = worker.describe()
        check_environment(processor.contract, spec)
        recorded = read_recorded_episodes(dataset.root, spec.robot_type)
        check_recording(processor, dataset)
        wanted = [
            (index, episode, success)
            for index, (episode, success) in enumerate(recorded)
            if options.tasks is None or episode.task in options.tasks
        ]
        episodes: list[ReplayedEpisode] = []
        for index, episode, success in wanted:
            episodes.append(replay_episode(worker, processor, dataset, spec, index, episode, success))
            played = episodes[-1]
            print(f"{played.task}, seed {played.seed}: {'agrees' if played.agrees else 'DISAGREES'}", flush=True)
    if options.output:
        rows = [episode.to_dict() for episode in episodes]
        atomic_write_text(options.output, json.dumps({"dataset": options.dataset, "episodes": rows}, indent=2) + "\n")
    if lines := disagreements(episodes):
        text = "\n".join(lines)
        raise ValueError(f"{len(lines)} of {len(episodes)} episodes did not go as they were recorded:\n{text}")
    print(f"all {len(episodes)} episodes went as they were recorded")


def _report(files: EpisodeFiles, options: EvaluateOptions) -> None:
    results = write_report(files)
    rows = [[name, str(rate)] for name, rate in results.items()]
    show_table([["", "solved, with the 95 % interval"], *rows])
    print(f"report: {files.folder / 'report.md'}")
    if options.card:
        _card(options, files.folder)


def _card(options: EvaluateOptions, results: str | Path) -> None:
    print(f"model card: {add_evaluation(options.checkpoint, results)}")


def _settings(
    options: EvaluateOptions,
    benchmark: Benchmark,
    spec: EnvironmentSpec,
    predictor: PolicyPredictor,
    found: dict[str, Any],
) -> dict[str, Any]:
    """What an episode's outcome depends on, and the versions that it was played with."""
    contract = predictor.processor.contract
    return {
        "benchmark": benchmark.name,
        **({"subset": options.subset} if options.subset else {}),
        "environment": {**json.loads(options.environment or "{}"), **spec.protocol, **found},
        "environment_options": json.loads(options.environment or "{}"),
        "checkpoint": options.checkpoint,
        "weights": weights_hash(predictor.policy),
        "contract": contract.hash,
        "statistics": contract.statistics_hash,
        "embodiment": options.embodiment,
        "dtype": options.dtype,
        "num_inference_steps": predictor.num_inference_steps,
        "replan_steps": options.replan_steps or contract.horizon,
        "batch_size": predictor.batch_size,
        "seed": options.seed,
        "imagewam": __version__,
    }


def _shard_and_device(options: EvaluateOptions) -> tuple[tuple[int, int], str]:
    """Of this process: `accelerate launch` and torchrun number the processes, and each has its GPU."""
    index, count = parse_shard(options.shard) if options.shard else (0, 1)
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = options.device
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return (index * processes + rank, count * processes), device


def _require(options: EvaluateOptions, *names: str) -> None:
    if missing := [name for name in names if not getattr(options, name)]:
        raise ValueError(f"evaluate {options.what} needs {', '.join('--' + name for name in missing)}")
