"""`imagewam <command>`: finds the command's module and hands it the rest of the command line."""

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train a policy on robot episodes, from an editing pipeline or from a policy",
    "cache": "what a training decodes and encodes, once: frames, instructions, image latents",
    "predict": "actions, and on request the edited frame, for images or a frame of a dataset",
    "attention": "where the actions look, over the cameras' pictures: PNG, MP4 and numbers",
    "record": "episodes of a simulator's scripted experts as a LeRobot dataset, or how often the experts succeed",
    "evaluate": "a policy in a simulator or, judged by a person, on a robot; recorded actions replayed; shards merged",
    "serve": "a policy for robots, over WebSocket, in the protocols that they speak",
    "replay": "recorded episodes to a server, its actions beside the recorded ones: the first thing for a new robot",
    "demo": "the policy that comes with the package in closed loop, on the CPU: films, pictures, a report",
    "study": "what of the method helps, tested at the size of that policy: arms, seeds, success rates, figures",
    "train-tiny": "that policy from nothing, on the CPU: expert episodes, VAE, text encoder, training, success rates",
    "import": "a published ImageWAM checkpoint, or Ovis-U1, in this package's format",
    "init-checkpoint": "the policy that a published variant's training starts from, on an editing pipeline's weights",
    "export": "a LeRobot policy folder that points to a repo; the action expert for other runtimes",
    "push": "a policy with its processor, model card and results, checked, to the Hub",
    "convert": "LIBERO's or RoboTwin's own HDF5 files as a LeRobot dataset",
    "canvas": "a picture of what a policy sees of a dataset, plain and augmented",
    "info": "what a policy or a dataset folder holds",
    "bench": "what the published variants need: memory, operations; samples a second of a dataset",
}

# Where the word is not the module's name, since it is no name in Python.
_MODULES = {"import": "import_checkpoint", "init-checkpoint": "init_checkpoint", "train-tiny": "train_tiny"}

USAGE = "\n".join(
    [
        "usage: imagewam <command> [config.yaml] [options]",
        "",
        *(f"  {name:<17}{text}" for name, text in COMMANDS.items()),
        "",
        "`imagewam <command> --help` lists the options; each can also stand in the YAML file.",
    ]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Commands are imported only when called.

    Raises:
        SystemExit: 2 for an unknown command or option, 1 for an input that the command cannot work with. The traceback
            of the latter is shown when the environment variable IMAGEWAM_TRACEBACK is set.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    name, *rest = argv
    if name not in COMMANDS:
        print(f"imagewam: no command {name!r}\n\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
    command = importlib.import_module(f"imagewam.commands.{_MODULES.get(name, name)}")
    from datasets.exceptions import DatasetsError  # the commands have imported it by now

    from .evaluation.env_worker import EnvWorkerError

    try:
        command.main(rest)
    except (ValueError, OSError, DatasetsError, EnvWorkerError) as error:
        # Wrong input is the user's to fix: one line that names it says more than a stack of our frames.
        if os.environ.get("IMAGEWAM_TRACEBACK"):
            raise
        # What `datasets` raises for a broken file says only that; its cause says what is wrong.
        text = f"{error} ({error.__cause__})" if isinstance(error, DatasetsError) and error.__cause__ else error
        raise SystemExit(f"imagewam {name}: {text}\n(IMAGEWAM_TRACEBACK=1 shows where)") from error


if __name__ == "__main__":  # for `accelerate launch -m imagewam.cli`
    main()
