"""Demonstrations, a policy, their replay and an evaluation in the real simulator, by the commands a user types."""

import json

import pytest

from imagewam.cli import main

pytestmark = pytest.mark.sim
TASK = "faucet-open-v3"
TINY = "--pipeline tiny --tiny_vae_steps 2 --action_hidden_size 16 --num_inference_steps 2 --save_frozen true"
SHORT = "--horizon 8 --max_steps 1 --per_device_train_batch_size 1 --use_cpu true --disable_tqdm true"


def test_from_demonstrations_to_a_report(tmp_path, capsys):
    pytest.importorskip("metaworld", reason="Meta-World is not installed: make test-sim")
    expert, policy, results = (str(tmp_path / name) for name in ("expert", "policy", "results"))
    main(["record", "metaworld", "--tasks", TASK, "--episodes", "2", "--output", expert])
    words = f"--dataset {expert} --camera_sizes 96x96 96x96 --output_dir {policy} {TINY} {SHORT}"
    main(["train", *words.split()])
    main(["evaluate", "replay", "--benchmark", "metaworld", "--dataset", expert, "--checkpoint", policy])
    assert "all 2 episodes went as they were recorded" in capsys.readouterr().out
    words = f"--checkpoint {policy} --tasks {TASK} --trials 1 --output {results} --device cpu --workers 1"
    main(["evaluate", "metaworld", *words.split()])
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    assert found["overall"]["trials"] == 1 and found["episodes"][0]["steps"] <= 500
    assert "metaworld" in (tmp_path / "results" / "report.md").read_text()
