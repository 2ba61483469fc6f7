"""The examples of docs/pipelines.md run as they stand, on the policy and the episodes that come with the package."""

import re
from pathlib import Path

import datasets

DOC = Path(__file__).resolve().parents[2] / "docs" / "pipelines.md"


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for example in re.findall(r"```python\n(.*?)```", DOC.read_text(), flags=re.DOTALL):
        exec(example, scope)
    printed = capsys.readouterr().out.splitlines()
    assert "('hand_dx', 'hand_dy', 'hand_dz', 'gripper_effort') (16, 4)" in printed
    assert [line.split()[0] for line in printed[-4:]] == ["0", "1", "2", "3"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "foreseen.png",
        "foreseen_corner2.png",
        "foreseen_gripperPOV.png",
    }
