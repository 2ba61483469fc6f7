"""One way to the Hub for everything that saves itself into a folder."""

import tempfile
from collections.abc import Callable

from huggingface_hub import CommitInfo, HfApi


def upload_saved(
    save: Callable[[str], object],
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Upload the folder that `save(folder)` fills, subfolders included; all else in the repo stays as it is."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
