"""The policies that the Space has loaded: few, shared by all users, each used by one at a time."""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import ImageWAMForActionPrediction, ImageWAMProcessor
from ..shipped import shipped_source

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def on_hub() -> bool:
    """Whether this runs as a Space on the hub, for anybody."""
    return "SPACE_ID" in os.environ


def check_source(source: str | None, what: str, own: tuple[str, ...] = ()) -> str:
    """The source of a policy or of a dataset as it was typed in, stripped.

    Args:
        what: for the error.
        own: sources that are the Space's, which need no check.

    Raises:
        ValueError: nothing was typed; neither a folder nor a repository's name; or a folder, on the hub, where nobody
            is to read the machine's.
    """
    source = (source or "").strip()
    if not source:
        raise ValueError(f"Name a {what}: a folder, or a repository on the hub such as someone/{what}.")
    if source in own or shipped_source(source) != source:
        return source
    if on_hub():
        if not _REPOSITORY.fullmatch(source):
            raise ValueError(f"This Space loads a {what} from the hub alone: expected OWNER/NAME, got {source!r}.")
        return source
    if not Path(source).is_dir() and not _REPOSITORY.fullmatch(source):
        raise ValueError(f"There is no {what} at {source!r}: it is no folder here, and no OWNER/NAME on the hub.")
    return source


@dataclass
class LoadedPolicy:
    """A policy with its processor, under the name by which it was asked for.

    Whoever computes with the policy holds `lock`: a decision changes what the policy's config says.
    """

    name: str
    policy: Any
    processor: Any
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def modes(self) -> list[str]:
        """The edit modes in which it can decide, the one that it was trained in first."""
        config = self.policy.config
        if not self.policy.backbone.denoises_targets:
            return [config.edit_mode]
        modes = ["denoise", "prefix"] if config.context_timestep == "target" else ["joint", "imagine", "prefix"]
        return [config.edit_mode, *(mode for mode in modes if mode != config.edit_mode)]

    @property
    def foresees_video(self) -> bool:
        return len(self.policy.config.target_offsets) > 1

    @contextmanager
    def in_mode(self, mode: str) -> Iterator[None]:
        """Decide in another edit mode than the trained one, with its own default of `edit_timestep`.

        Raises:
            ValueError: the policy cannot.
        """
        if mode not in self.modes:
            raise ValueError(f"{self.name} decides in the modes {', '.join(self.modes)}, not in {mode!r}")
        config = self.policy.config
        with self.lock:
            trained = config.edit_mode, config.edit_timestep
            if mode != config.edit_mode:
                config.edit_mode, config.edit_timestep = mode, 1.0 if mode == "denoise" else 0.0
            try:
                yield
            finally:
                config.edit_mode, config.edit_timestep = trained


class PolicyStore:
    """Loads policies when they are asked for and keeps the last few.

    Args:
        capacity: how many are kept.
        own: sources that everybody may name beside what comes with the package, such as the default policy's folder.
        device: where they compute.
    """

    def __init__(self, capacity: int = 2, own: tuple[str, ...] = (), device: str = "cpu"):
        self.capacity, self.device = capacity, device
        self.own = own
        self._kept: OrderedDict[tuple[str, str | None], LoadedPolicy] = OrderedDict()
        self._lock = threading.Lock()  # for the table
        self._loading = threading.Lock()  # two at once would double what memory has to hold

    def get(self, source: str | None, embodiment: str | None = None) -> LoadedPolicy:
        """The policy called so, loaded if it is not there.

        Args:
            embodiment: the robot, of a policy that drives several.

        Raises:
            ValueError: there is none, with the reason.
        """
        key = check_source(source, "policy", self.own), (embodiment or "").strip() or None
        if (found := self._found(key)) is not None:
            return found
        with self._loading:
            if (found := self._found(key)) is not None:
                return found
            loaded = self._load(*key)
            with self._lock:
                self._kept[key] = loaded
                while len(self._kept) > self.capacity:
                    self._kept.popitem(last=False)
        return loaded

    def _found(self, key: tuple[str, str | None]) -> LoadedPolicy | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _load(self, source: str, embodiment: str | None) -> LoadedPolicy:
        try:
            processor = ImageWAMProcessor.from_pretrained(source, embodiment=embodiment)
            if not processor.has_statistics:
                raise ValueError("it was not trained yet: its processor has no statistics")
            policy = ImageWAMForActionPrediction.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{source} could not be loaded as a policy: {str(error)[:400]}") from error
        return LoadedPolicy(source, policy.eval().to(self.device), processor)
