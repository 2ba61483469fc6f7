"""Names of models that a checkpoint may hold, because they mean the same on every machine."""

import os

from huggingface_hub.utils import HFValidationError, validate_repo_id


def names_a_repo(source: str | None) -> bool:
    """Whether a `from_pretrained` source has the form of a Hub repo id (`name`, `owner/name`) and is no path here."""
    if not source or os.path.exists(source):
        return False
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True
