"""What a wheel holds: folders without `__init__.py` are left out of it, and a checkout does not show that."""

from pathlib import Path

import imagewam


def test_every_folder_of_code_is_a_package():
    root = Path(imagewam.__file__).parent
    folders = {path.parent for path in root.rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]
