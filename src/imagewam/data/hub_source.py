"""Where a dataset lies: a folder here, or a dataset repository of the Hub, whose files are fetched when needed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.contrib.concurrent import thread_map

from ..shipped import shipped_source

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
PARALLEL_DOWNLOADS = 8


@dataclass(frozen=True)
class DatasetSource:
    """A dataset folder; of a repository it is the snapshot of one commit in the Hub's cache, perhaps incomplete."""

    root: Path
    repo: str | None = None
    revision: str | None = None

    def fetch(self, paths: Iterable[Path], token: str | bool | None = None) -> None:
        """Download those of these files under `root` that are not there yet; a folder of one's own stays as it is."""
        if self.repo is not None:
            missing = [path.relative_to(self.root).as_posix() for path in dict.fromkeys(paths) if not path.is_file()]
            thread_map(
                lambda name: fetch_file(self.repo, self.revision, name, token),
                missing,
                max_workers=PARALLEL_DOWNLOADS,
                desc=f"Fetching files of {self.repo}",
                unit="file",
                delay=2,
            )


def open_source(source: str | Path, revision: str | None = None, token: str | bool | None = None) -> DatasetSource:
    """
    The folder `source` if there is one, else the repository of that name, with its `meta/` fetched.

    Args:
        source: folder, `org/name` of a dataset repository, or the name of episodes that come with the package.
        revision: branch, tag or commit of the repository; its default branch for None.
        token: as everywhere in huggingface_hub; None for the one that the user logged in with.

    Raises:
        FileNotFoundError: neither is there, or the repository has no such revision.
        ConnectionError: the Hub cannot be reached, and its cache does not hold what is needed.
        ValueError: a revision of a folder, which has none.
    """
    source = shipped_source(source)
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"{source} is a folder here and has no revision {revision!r}; only repositories have")
        return DatasetSource(Path(source))
    repo = str(source)
    if not REPO_ID.fullmatch(repo):
        raise FileNotFoundError(f"{repo} is no LeRobot dataset: neither a folder here nor an org/name of the Hub")
    try:
        root = snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns="meta/**", token=token)
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} is neither a folder here nor a dataset repository of {constants.ENDPOINT} that can be read "
            "(a private one needs a token)"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the dataset repository {repo} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise _unreachable(repo, "its meta folder", error) from error
    return DatasetSource(Path(root), repo, revision=Path(root).name)


def fetch_file(
    repo: str, revision: str, name: str, token: str | bool | None = None, folder: str | Path | None = None
) -> Path:
    """
    One file of a dataset repository at a commit, in the Hub's cache, or in `folder` under its name in the repository.

    Raises FileNotFoundError where the repository has none, ConnectionError where the Hub cannot be reached.
    """
    try:
        path = hf_hub_download(
            repo, name, repo_type="dataset", revision=revision, token=token, local_dir=folder, library_name="imagewam"
        )
    except RemoteEntryNotFoundError as error:
        raise FileNotFoundError(f"{repo} at {revision} has no {name}; the dataset's metadata names it") from error
    except LocalEntryNotFoundError as error:
        raise _unreachable(repo, name, error) from error
    return Path(path)


def _unreachable(repo: str, what: str, error: Exception) -> ConnectionError:
    """Not a FileNotFoundError, which would say that the dataset itself lacks the file."""
    return ConnectionError(
        f"{repo} is no folder here, and {what} is not in the cache of the Hub, {constants.ENDPOINT}, "
        f"which cannot be reached: {error}"
    )
