"""A saved policy with its processor, model card and results, as one repo of the Hub."""

import json
import os
from pathlib import Path

from huggingface_hub import CommitInfo, ModelCard, constants
from huggingface_hub.utils import get_session, hf_raise_for_status

from ..upload import WEIGHT_FILES, clear_errors, upload_files
from .checkpoint_files import check_checkpoint, checkpoint_files
from .model_card import CARD_FILE, write_model_card


def push_checkpoint(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    commit_message: str = "Upload policy, processor and model card",
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Check a checkpoint's folder, then upload it in one commit; a model card is written where there is none.

    The repo's former weights and frozen parts go; whatever else is in it stays. Doing it again uploads what has
    changed, and after a push that was cut off what was missing.

    Raises:
        ValueError, OSError: as `check_checkpoint`, before anything is uploaded; the Hub does not take the card's
            metadata; as `upload_files`.
    """
    check_checkpoint(folder)
    if not Path(folder, CARD_FILE).is_file():
        write_model_card(folder)
    with clear_errors(repo_id):
        _check_card(Path(folder, CARD_FILE))
    return upload_files(
        folder,
        checkpoint_files(folder),
        repo_id,
        commit_message=commit_message,
        replaces=(*WEIGHT_FILES, "frozen/**"),
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
    )


def _check_card(path: Path) -> None:
    """Ask the Hub whether it takes the card's metadata.

    As `ModelCard.validate`, which in huggingface_hub 1.6 to 1.9 asks huggingface.co wherever HF_ENDPOINT points.
    """
    card = ModelCard.load(path)
    response = get_session().post(
        f"{constants.ENDPOINT}/api/validate-yaml",
        json={"repoType": card.repo_type, "content": str(card)},
        headers={"Accept": "text/plain"},
    )
    if response.status_code == 400:
        try:
            told = "; ".join(each["message"] for each in json.loads(response.text)["errors"])
        except (ValueError, KeyError, TypeError):
            told = response.text
        raise ValueError(f"the Hub does not take the metadata of {path}: {told}")
    hf_raise_for_status(response)
