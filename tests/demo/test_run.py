import json

import pytest

from imagewam.demo.run import run_demo
from imagewam.demo.settings import DemoSettings


@pytest.mark.sim
def test_the_demo_in_small(tmp_path, capsys):
    settings = DemoSettings(
        output_dir=str(tmp_path), tasks=["faucet-open-v3", "reach-v3"], episodes_per_task=1, step_limit=16,
        num_inference_steps=2,
    )  # fmt: skip
    report = run_demo(settings)
    assert (report / "report.md").is_file() and (report / "changed.mp4").is_file()
    results = json.loads((tmp_path / "results.json").read_text())
    played = [[record["task"] for record in records] for records in results["conditions"].values()]
    assert played == [["faucet-open-v3", "reach-v3"], ["faucet-open-v3"], ["faucet-open-v3"]]
    assert str(report / "demo.png") in capsys.readouterr().out
