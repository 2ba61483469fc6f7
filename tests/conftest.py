import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Numeric fixtures and real robot episodes that lie beside a developer's checkout, not in the package."""
    folder = Path(os.environ.get("IMAGEWAM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"reference data not found at {folder}; set IMAGEWAM_SHARED")
    return folder
