"""`imagewam train-tiny metaworld`: the policy that comes with the package, from nothing, and its success rates.

Scripted experts play in a simulator; a VAE and a text encoder learn its pictures and sentences; an editing transformer
with its action expert learns to act; the result plays from start positions that no training saw, and its model card
tells of all that. The same command goes on where it was cut off.
"""

import json
from collections.abc import Sequence

from ..hub.model_card import CARD_FILE
from ..settings_file import option_words
from ..tiny.origin import read_origins, tell_origin
from ..tiny.recipe import MADE_WITH, make_policy
from ..tiny.settings import TINY_BENCHMARKS, TinySettings
from . import evaluate
from .options import parse_options

BATCH_SIZE = 2  # of the policy's calls: with it, the number of simulators changes no bit of a result


def main(argv: Sequence[str]) -> None:
    """Record, fit, train, evaluate; each is done once."""
    words = ["--benchmark", *argv] if argv and argv[0] in TINY_BENCHMARKS else list(argv)
    (settings,) = parse_options((TinySettings,), words, "train-tiny", __doc__)
    policy = make_policy(settings)
    command = " ".join(["imagewam", "train-tiny", settings.benchmark, *option_words(settings.changed())])
    origins = read_origins(settings.folder / MADE_WITH)
    tell_origin(policy / CARD_FILE, f"imagewam-tiny-{settings.benchmark}", command, settings.seed, origins)
    print("playing in closed loop", flush=True)
    evaluate.main(evaluation(settings, str(policy)))  # which renews the card


def evaluation(settings: TinySettings, checkpoint: str) -> list[str]:
    """The words of `imagewam evaluate` that measure a policy of these settings, into its model card too."""
    return [
        settings.benchmark,
        *("--checkpoint", checkpoint, "--output", str(settings.folder / "evaluation"), "--card"),
        *("--tasks", *settings.tasks, "--trials", str(settings.trials)),
        *("--environment", json.dumps(settings.environment)),
        *("--replan_steps", str(settings.replan_steps), "--workers", str(settings.workers)),
        *("--batch_size", str(BATCH_SIZE)),
        *("--num_inference_steps", str(settings.num_inference_steps), "--seed", str(settings.seed)),
    ]
