"""The README's example runs as it stands, on what `make demo` leaves behind (here: an untrained policy)."""

import re
import shutil
from pathlib import Path

from imagewam.data.lerobot_dataset import LeRobotDataset
from imagewam.data.statistics import compute_statistics
from imagewam.demo.policy import metaworld_contract, new_policy
from imagewam.demo.run import DATASET, POLICY
from imagewam.demo.settings import DemoSettings
from imagewam.processing_imagewam import ImageWAMProcessor

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_runs(recorded, tmp_path, monkeypatch, capsys):
    settings = DemoSettings(vae_steps=1)
    folder = tmp_path / settings.output_dir
    dataset = LeRobotDataset(recorded)
    contract = metaworld_contract(dataset, settings.horizon)
    policy = new_policy(dataset, contract, settings)
    policy.save_pretrained(folder / POLICY, save_frozen=True)
    statistics = compute_statistics(dataset, settings.horizon)
    ImageWAMProcessor.for_policy(policy, contract, statistics).save_pretrained(folder / POLICY)
    shutil.copytree(recorded, folder / DATASET)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 10
    exec(example, {})
    assert capsys.readouterr().out == f"(1, {settings.horizon}, 4)\n"


def test_the_pictures_that_it_shows_are_there():
    for path in re.findall(r"!\[[^]]*\]\(([^)]*)\)", README.read_text()):
        assert (README.parent / path).is_file(), path
