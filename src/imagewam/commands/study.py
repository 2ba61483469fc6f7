"""`imagewam study`: the paper's claims tested at the size of the tiny policy, on what `train-tiny` recorded.

Every arm learns the same episodes for as many steps, with several seeds, and plays the same start positions. A file
per arm and seed holds every episode; the same command does what is missing. `imagewam study figures` draws table and
plots from the files. `imagewam study attention` measures how much attention trained policies pay to the object of
their task.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch

from .. import ImageWAMForActionPrediction, ImageWAMProcessor
from ..atomic import atomic_write_text
from ..evaluation.env_worker import EnvWorker
from ..evaluation.environment import EnvironmentSpec
from ..evaluation.policy_predictor import PolicyPredictor
from ..modeling.weights_hash import weights_hash
from ..shipped import TINY_METAWORLD
from ..study.figures import write_figures
from ..study.object_attention import object_attention, summary, watched_moments
from ..study.run import run_study
from ..study.settings import StudySettings
from ..tiny.origin import made_with
from ..tiny.settings import TINY_BENCHMARKS, TinySettings
from .options import option, parse_options, show_table


@dataclass
class AttentionOptions:
    """Moments of the experts' episodes, at which trained policies plan."""

    output: str = option("File of the numbers to write.", "studies/tiny-metaworld/attention.json")
    checkpoints: list[str] = field(
        default_factory=lambda: [TINY_METAWORLD], metadata={"help": "Policies of Meta-World: folders, repos, names."}
    )
    tasks: list[str] = field(
        default_factory=lambda: list(TINY_BENCHMARKS["metaworld"].tasks), metadata={"help": "Tasks to look at."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Start positions."})
    every: int = option("Actions between two moments.", 16)
    step_limit: int = option("Actions of an episode that are watched.", 100)


def main(argv: Sequence[str]) -> None:
    """Train and play what is missing, then draw; with the word `figures`, only draw."""
    word = argv[0] if argv and argv[0] in ("figures", "attention") else None
    rest = argv[1:] if word else argv
    if word == "attention":
        (options,) = parse_options((AttentionOptions,), rest, "study attention", __doc__)
        return attention(options)
    (settings,) = parse_options((StudySettings,), rest, "study", __doc__)
    if word != "figures":
        run_study(settings)
    for path in write_figures(settings.output):
        print(f"written: {path}")


def attention(options: AttentionOptions) -> None:
    """Measure, write the numbers, and print the means."""
    tiny = TinySettings("metaworld")
    with EnvWorker(tiny.rules.factory, **tiny.environment) as worker:
        spec = worker.describe()
        predictors = {checkpoint: _predictor(checkpoint, spec) for checkpoint in options.checkpoints}
        episodes = [
            list(watched_moments(worker, task, seed, options.every, options.step_limit))
            for task in options.tasks
            for seed in options.seeds
        ]
    found, rows = {}, [["policy", "attention on the object", "its part of the picture", "ratio"]]
    for checkpoint, predictor in predictors.items():
        moments = list(chain.from_iterable(object_attention(predictor, episode) for episode in episodes))
        measured = summary(moments)
        found[checkpoint] = {"weights": weights_hash(predictor.policy), **measured}
        shares = [f"{measured[name]:.1%}" for name in ("attention_share", "area_share")]
        rows.append([checkpoint, *shares, f"{measured['ratio']:.2f}"])
    atomic_write_text(options.output, json.dumps({"made_with": made_with(), "policies": found}, indent=1) + "\n")
    show_table(rows)
    print(f"written: {options.output}")


def _predictor(checkpoint: str, spec: EnvironmentSpec) -> PolicyPredictor:
    policy = ImageWAMForActionPrediction.from_pretrained(checkpoint, dtype=torch.float32)
    predictor = PolicyPredictor(policy, ImageWAMProcessor.from_pretrained(checkpoint))
    predictor.check_environment(spec)
    return predictor
