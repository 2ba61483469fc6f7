"""What comes with the package, found by its name without a network: a trained policy, and episodes to try it on."""

import os
from pathlib import Path

TINY_METAWORLD = "imagewam-tiny-metaworld"  # checkpoint folder; `imagewam train-tiny metaworld` made it
METAWORLD_EPISODES = "metaworld-episodes"  # LeRobot dataset: one episode per task, none of them trained on

_HERE = Path(__file__).parent


def shipped_source(name_or_path: str | os.PathLike) -> str | os.PathLike:
    """What to load for a name: the folder that comes with the package, else the name or path itself.

    A folder of that name where the program runs comes first, as it does before a repository of the Hub.
    """
    name = os.fspath(name_or_path)
    if name in (TINY_METAWORLD, METAWORLD_EPISODES) and not os.path.isdir(name):
        return str(_HERE / name)
    return name_or_path
