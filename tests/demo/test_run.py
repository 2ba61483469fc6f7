import json

import pytest

from imagewam.demo.run import run_demo
from imagewam.demo.settings import DemoSettings


@pytest.mark.sim
def test_the_whole_way_in_small(tmp_path, capsys):
    settings = DemoSettings(
        output_dir=str(tmp_path), episodes_per_task=1, held_out_per_task=1, image_size=32, vae_steps=2, train_steps=2,
        batch_size=2, rollouts_per_task=1, step_limit=16, num_inference_steps=2,
    )  # fmt: skip
    report = run_demo(settings)
    assert {path.name for path in report.iterdir()} == {
        "demo.png", "attention.png", "futures.png", "losses.png", "episodes.mp4", "report.md"
    }  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())
    assert [record["task"] for record in results["episodes"]] == settings.tasks
    assert str(report / "demo.png") in capsys.readouterr().out

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run_demo(settings)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert before == after, "a finished stage was done again"
    assert capsys.readouterr().out.count("done before") == 3
