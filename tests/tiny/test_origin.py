import subprocess

import yaml

from imagewam.tiny import origin


def test_another_repository_is_not_told(tmp_path, monkeypatch):
    """As where the package is installed into an environment inside of a checkout of something else."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "imagewam" / "tiny").mkdir(parents=True)
    installed = tmp_path / "imagewam" / "tiny" / "origin.py"
    installed.write_text("")
    monkeypatch.setattr(origin, "__file__", str(installed))
    assert origin.made_with()["commit"] == "none"


def test_a_run_that_went_on_elsewhere_tells_both(tmp_path, monkeypatch):
    path = tmp_path / "made_with.json"
    origin.note_origin(path)
    origin.note_origin(path)
    assert len(origin.read_origins(path)) == 1
    monkeypatch.setattr(origin, "_commit", lambda: "later")
    origin.note_origin(path)
    card = tmp_path / "README.md"
    card.write_text("---\ntags:\n- robotics\n---\n\n# ImageWAM on flux2-klein\n\nText.\n")
    for _ in range(2):
        origin.tell_origin(card, "imagewam-tiny", "imagewam train-tiny metaworld", 3, origin.read_origins(path))
    text = card.read_text()
    metadata, body = text.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(metadata) == {"tags": ["robotics"], "license": "apache-2.0"}
    assert body.strip().startswith("# imagewam-tiny\n\nText.\n\n## How it was made\n")
    assert ", then later |" in text and "| seed | 3 |" in text and text.count(origin.HEADING) == 1
