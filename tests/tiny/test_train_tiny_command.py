import json

import pytest

from imagewam.commands import train_tiny
from imagewam.tiny.recipe import make_policy
from imagewam.tiny.settings import TinySettings

FEW = [
    "--tasks", "faucet-open-v3", "--episodes_per_task", "1", "--held_out_per_task", "1", "--text_steps", "2",
    "--vae_steps", "2", "--train_steps", "2", "--batch_size", "2", "--trials", "1", "--num_inference_steps", "2",
]  # fmt: skip


@pytest.mark.sim
def test_the_whole_recipe_in_small(tmp_path, capsys):
    folder = tmp_path / "run"
    train_tiny.main(["metaworld", "--output_dir", str(folder), *FEW])
    card = (folder / "policy" / "README.md").read_text()
    assert "faucet-open-v3" in card and "0 of 1" in card
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    assert results["settings"]["environment_options"] == {"image_size": 96}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    capsys.readouterr()
    make_policy(TinySettings("metaworld", output_dir=str(folder), tasks=["faucet-open-v3"], episodes_per_task=1,
                             held_out_per_task=1, text_steps=2, vae_steps=2, train_steps=2, batch_size=2, trials=1,
                             num_inference_steps=2))  # fmt: skip
    assert capsys.readouterr().out.count("done before") == 3
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_the_evaluation_is_that_of_the_settings():
    words = train_tiny.evaluation(TinySettings("metaworld", output_dir="out", tasks=["reach-v3"], workers=5), "policy")
    given = dict(zip(words[1::1], words[2::1], strict=False))
    assert words[0] == "metaworld" and given["--tasks"] == "reach-v3" and given["--trials"] == "20"
    assert given["--workers"] == "5" and given["--batch_size"] == "2", "the number of simulators changes a number"
    assert json.loads(given["--environment"]) == {"image_size": 96}
