import pytest

from recorded_ball import record_ball


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """Folder of the recorded ball."""
    root = tmp_path_factory.mktemp("tiny") / "dataset"
    record_ball(root)
    return root
