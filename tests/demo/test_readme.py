"""The README's example runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 10
    exec(example, {})
    assert capsys.readouterr().out == "(1, 16, 4)\n"


def test_the_pictures_that_it_shows_are_there():
    for path in re.findall(r"!\[[^]]*\]\(([^)]*)\)", README.read_text()):
        assert (README.parent / path).is_file(), path
