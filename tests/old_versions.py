"""What the oldest libraries that the package works with cannot do."""

import diffusers
import huggingface_hub
import pytest
import torch
from packaging.version import Version

# There the policy says that it is not compiled, and runs as before.
compiles_actions = pytest.mark.skipif(
    torch.__version__ < (2, 12), reason="torch.compile of 2.11 does not see the attributes of a tuple's subclass"
)
# There the error of the connection is passed on, and the next call goes on.
retries_cut_downloads = pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("1.20"),
    reason="huggingface_hub does not try again where a connection closes half-way",
)


def needs_diffusers(release: str, reason: str) -> pytest.MarkDecorator:
    """Skipped below a release of diffusers."""
    return pytest.mark.skipif(Version(diffusers.__version__) < Version(release), reason=reason)


def skip_without_named_blocks(transformer: torch.nn.Module) -> None:
    """Skip where diffusers does not name this network's repeated blocks, which quantisation goes by."""
    named = getattr(transformer, "_repeated_blocks", None)
    if not named and Version(diffusers.__version__) < Version("0.41"):
        pytest.skip(f"diffusers {diffusers.__version__} names no repeated blocks of {type(transformer).__name__}")
