"""Policies that come with the package: complete checkpoint folders, loaded by name, without a network."""

import os
from pathlib import Path

TINY_METAWORLD = "imagewam-tiny-metaworld"  # what `imagewam train-tiny` makes; its README.md is its model card

_HERE = Path(__file__).parent


def checkpoint_source(name_or_path: str | os.PathLike) -> str | os.PathLike:
    """What to load for a name: the folder of a policy that comes with the package, else the name or path itself.

    A folder of that name where the program runs comes first, as it does before a repository of the Hub.
    """
    if os.fspath(name_or_path) == TINY_METAWORLD and not os.path.isdir(name_or_path):
        return str(_HERE / TINY_METAWORLD)
    return name_or_path
