"""What the oldest libraries that the package works with cannot do."""

import diffusers
import pytest
import torch
from packaging.version import Version

# There the policy says that it is not compiled, and runs as before.
compiles_actions = pytest.mark.skipif(
    torch.__version__ < (2, 12), reason="torch.compile of 2.11 does not see the attributes of a tuple's subclass"
)


def needs_diffusers(release: str, reason: str) -> pytest.MarkDecorator:
    """Skipped below a release of diffusers."""
    return pytest.mark.skipif(Version(diffusers.__version__) < Version(release), reason=reason)


def diffusers_names_blocks(transformer: torch.nn.Module) -> None:
    """Skip where diffusers does not name this network's repeated blocks, which quantisation goes by."""
    named = getattr(transformer, "_repeated_blocks", None)
    if not named and Version(diffusers.__version__) < Version("0.41"):
        pytest.skip(f"diffusers {diffusers.__version__} names no repeated blocks of {type(transformer).__name__}")
