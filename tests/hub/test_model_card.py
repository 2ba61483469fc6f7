import json
import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from imagewam import ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.evaluation.episode_files import EpisodeFiles
from imagewam.evaluation.report import write_report
from imagewam.evaluation.rollout import Episode, EpisodeRecord
from imagewam.hub.card_results import kept_evaluations
from imagewam.hub.model_card import TrainingFacts, add_evaluation, write_model_card
from imagewam.modeling.weights_hash import weights_hash
from imagewam.processing.contract import ActionSpec
from imagewam.processing.training_data import DataPart, TrainingData
from tiny_policy import tiny_policy

BASE = {"repo": "black-forest-labs/FLUX.2-klein-4B", "revision": "5e67da95"}
ACTION = ActionSpec(("dx", "dgripper"), "mean_std", units=("m", "1"), gripper="-1 opens | 1 closes")


def save(folder, scale=1.0):
    policy, processor = tiny_policy(contract={"action": ACTION})
    processor._robot.training_data = TrainingData((DataPart("ab" * 32, "0:9", 90, name="someone/cups at 12ab"),))
    with torch.no_grad():
        next(iter(policy.action_expert.parameters())).mul_(scale)
    policy.save_pretrained(folder, save_frozen=True)
    processor.save_pretrained(folder, save_frozen=True)
    config = type(policy.config).from_dict(policy.config.to_dict())
    config.frozen_parts = {name: {**BASE, "subfolder": name} for name in policy.config.frozen_parts}
    return config


@pytest.fixture
def checkpoint(tmp_path):
    config = save(tmp_path / "policy")
    write_model_card(tmp_path / "policy", config=config)
    return tmp_path / "policy"


def evaluation(folder, checkpoint, dtype="float32", failures=1, **changes):
    """A finished one, of two tasks with three trials each."""
    policy = ImageWAMForActionPrediction.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    episodes = [Episode(task, seed) for task in ("reach-v3", "push-v3") for seed in range(3)]
    settings = {
        "benchmark": "metaworld",
        "checkpoint": str(checkpoint),
        "weights": weights_hash(policy),
        "dtype": dtype,
        "replan_steps": 4,
        "environment_options": {"image_size": 16},
        "seed": 7,
    }
    files = EpisodeFiles(folder, {**settings, **changes}, episodes)
    for index, (task, seed) in enumerate(episodes):
        files.write(EpisodeRecord(task, seed, "do it", index >= failures, 9))
    write_report(files)
    return folder


def read(checkpoint):
    return (checkpoint / "README.md").read_text()


def test_the_card_says_what_the_policy_is(checkpoint):
    data = metadata_load(checkpoint / "README.md")
    assert (
        data["library_name"] == "imagewam" and data["pipeline_tag"] == "robotics" and data["license"] == "apache-2.0"
    )
    assert data["base_model"] == BASE["repo"] and data["base_model_relation"] == "finetune"
    assert data["datasets"] == ["someone/drawers", "someone/cups"]
    assert {"robotics", "imagewam", "flux2-klein"} == set(data["tags"])
    card = ModelCard.load(checkpoint / "README.md")
    assert card.data.to_dict() == data and "model-index" not in data
    text = card.text
    assert "# imagewam-flux2-4b" in text and f"| base model | {BASE['repo']} at {BASE['revision']} |" in text
    assert "| camera wrist | 16 x 32, turned upside down |" in text and "| units of actions | m, 1 |" in text
    assert "-1 opens \\| 1 closes" in text and "someone/cups at 12ab" in text
    assert "No closed-loop evaluation of these weights is recorded" in text
    write_model_card(checkpoint)  # from the folder alone, which does not know where its frozen parts came from
    assert ModelCard.load(checkpoint / "README.md").content == card.content
    assert "whose licence (`apache-2.0`) holds for them" in text and "not recorded here" in text
    assert str(checkpoint.parent) not in text


def test_the_code_runs_as_copied(checkpoint):
    (code,) = re.findall(r"```python\n(.*?)```", read(checkpoint), flags=re.DOTALL)
    assert 8 <= len([line for line in code.splitlines() if line]) <= 16
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=checkpoint, env=environment, capture_output=True, text=True)
    assert done.stdout == "(1, 4, 2)\n", done.stderr


def test_results_are_merged_once(checkpoint, tmp_path):
    results = evaluation(tmp_path / "results", checkpoint)
    add_evaluation(checkpoint, results)
    once = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    add_evaluation(checkpoint, results)
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == once
    text = read(checkpoint)
    (kept,) = kept_evaluations(checkpoint)
    assert "| all tasks | 5 of 6 | 83.3 % | 43.6 to 97.0 % |" in text and text.count("## Results") == 1
    assert f"every episode in [{kept.file}]({kept.file})" in text and kept.weights in text
    command = (
        "imagewam evaluate metaworld --checkpoint . --tasks reach-v3 push-v3 --trials 3 \\\n    --dtype float32 "
        "--replan_steps 4 --seed 7 --environment '{\"image_size\": 16}' \\\n    --output results"
    )
    assert command in text and "published" not in text.lower() and "No closed-loop" not in text
    episodes = json.loads((checkpoint / kept.file).read_text())["episodes"]
    assert len(episodes) == 6 and str(tmp_path) not in (checkpoint / kept.file).read_text()


def test_results_are_metadata_too(checkpoint, tmp_path):
    add_evaluation(checkpoint, evaluation(tmp_path / "results", checkpoint))
    data = ModelCard.load(checkpoint / "README.md").data
    name, results = model_index_to_eval_results(metadata_load(checkpoint / "README.md")["model-index"])
    assert name == "imagewam-flux2-4b" and results == data.eval_results
    assert eval_results_to_model_index(name, results) == data.to_dict()["model-index"]
    values = {result.dataset_config: result.metric_value for result in results}
    assert values == {"reach-v3": 66.7, "push-v3": 100.0, None: 83.3}
    (file,) = (checkpoint / ".eval_results").glob("*.yaml")
    entries = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [
        ("lerobot/metaworld_mt50", "reach-v3", 66.7),
        ("lerobot/metaworld_mt50", "push-v3", 100.0),
        ("lerobot/metaworld_mt50", "default", 83.3),
    ]
    assert "episodes 6, interval_95 43.6 to 97.0, seed 7, weights" in entries[-1].notes


def test_evaluations_of_one_checkpoint_stand_side_by_side(checkpoint, tmp_path):
    add_evaluation(checkpoint, evaluation(tmp_path / "a", checkpoint))
    add_evaluation(checkpoint, evaluation(tmp_path / "b", checkpoint, dtype="bfloat16", failures=3))
    text = read(checkpoint)
    assert "| all tasks | 5 of 6" in text and "| all tasks | 3 of 6" in text and "--dtype bfloat16" in text
    results = ModelCard.load(checkpoint / "README.md").data.eval_results
    assert sorted(result.metric_value for result in results if result.dataset_config is None) == [50.0, 83.3]


def test_results_of_other_weights_are_refused(checkpoint, tmp_path):
    save(tmp_path / "other", scale=2.0)
    results = evaluation(tmp_path / "results", tmp_path / "other")
    theirs = json.loads((results / "evaluation.json").read_text())["settings"]["weights"]
    ours = weights_hash(ImageWAMForActionPrediction.from_pretrained(checkpoint))
    before = read(checkpoint)
    with pytest.raises(ValueError, match=f"are of the weights {theirs}, but .* holds {ours}"):
        add_evaluation(checkpoint, results)
    assert read(checkpoint) == before and not (checkpoint / "evaluations").exists()


def test_results_leave_the_card_with_the_weights_that_they_are_of(checkpoint, tmp_path):
    add_evaluation(checkpoint, evaluation(tmp_path / "results", checkpoint))
    save(checkpoint, scale=2.0)
    write_model_card(checkpoint)
    text = read(checkpoint)
    assert "83.3" not in text and "1 evaluation(s) of other weights lie in `evaluations/`" in text
    assert "model-index" not in metadata_load(checkpoint / "README.md")
    assert not list((checkpoint / ".eval_results").iterdir())


def test_an_evaluation_that_is_not_finished_is_refused(checkpoint, tmp_path):
    results = evaluation(tmp_path / "results", checkpoint)
    (results / "episodes" / "push-v3" / "2.json").unlink()
    with pytest.raises(ValueError, match="is not finished: 1 of 6 episodes are missing"):
        add_evaluation(checkpoint, results)
    with pytest.raises(OSError, match="holds no evaluation"):
        add_evaluation(checkpoint, tmp_path)
    content = json.loads((results / "results.json").read_text())
    (results / "results.json").write_text(json.dumps({**content, "settings": {**content["settings"], "seed": 8}}))
    evaluation(tmp_path / "whole", checkpoint)
    (tmp_path / "whole" / "results.json").write_bytes((results / "results.json").read_bytes())
    with pytest.raises(ValueError, match="is not of the evaluation beside it"):
        add_evaluation(checkpoint, tmp_path / "whole")


def test_what_a_person_wrote_stays(checkpoint, tmp_path):
    card = ModelCard.load(checkpoint / "README.md")
    card.text = card.text.replace("# imagewam-flux2-4b", "# Drawers\n\nOpens *most* drawers.").replace(
        "<!-- imagewam: limits -->", "## Thanks\n\nTo Ada.\n\n<!-- imagewam: limits -->"
    )
    card.data.license, card.data.tags, card.data.model_name = "mit", ["drawers"], "drawers"
    card.data["language"] = "en"
    card.data.eval_results = model_index_to_eval_results(
        [{"name": "drawers", "results": [_persons_result("smoothness", 3)]}]
    )[1]
    card.save(checkpoint / "README.md")
    facts = TrainingFacts([("steps", "30 of 30")], [("policy", "0.1")], ", over 8 held-out samples", "curves.png")
    write_model_card(checkpoint, training=facts)
    add_evaluation(checkpoint, evaluation(tmp_path / "results", checkpoint))
    text, data = read(checkpoint), metadata_load(checkpoint / "README.md")
    assert "# Drawers\n\nOpens *most* drawers." in text and "## Thanks\n\nTo Ada." in text
    assert "# imagewam-flux2-4b" not in text and text.count("## Training") == 1
    assert "| steps | 30 of 30 |" in text and "![Losses" in text  # added by the trainer, kept by the evaluation
    assert data["license"] == "mit" and data["language"] == "en" and data["base_model"] == BASE["repo"]
    assert data["tags"] == ["drawers", "robotics", "imagewam", "flux2-klein"]
    results = ModelCard.load(checkpoint / "README.md").data.eval_results
    assert [(result.metric_type, result.metric_value) for result in results][:1] == [("smoothness", 3)]
    assert data["model-index"][0]["name"] == "drawers" and len(results) == 4


def _persons_result(metric, value):
    return {
        "task": {"type": "robotics"},
        "dataset": {"type": "own", "name": "own"},
        "metrics": [{"type": metric, "value": value}],
    }


def test_a_card_without_our_sections_gets_them(checkpoint):
    (checkpoint / "README.md").write_text("# By hand\n\nA policy.\n")
    write_model_card(checkpoint)
    text = read(checkpoint)
    assert text.index("A policy.") < text.index("## Use") < text.index("## Limits")
    assert "The base model is not recorded" in text and metadata_load(checkpoint / "README.md")["pipeline_tag"]
    card = ModelCard.load(checkpoint / "README.md")
    card.data.license = "mit"
    card.save(checkpoint / "README.md")
    write_model_card(checkpoint)
    assert "`mit`, as the metadata of this card say. No base model is recorded." in read(checkpoint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\nlicense: [\n---\n# A", "the metadata of .*README.md cannot be read"),
        ("---\nmodel-index: 3\n---\n# A", "the metadata of .*README.md cannot be read"),
        ("# A\n<!-- imagewam: use -->\n", "has lost its other half"),
    ],
)
def test_a_broken_card_is_named_and_left_alone(checkpoint, text, message):
    (checkpoint / "README.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        write_model_card(checkpoint)
    assert read(checkpoint) == text


def test_a_folder_without_a_policy_gets_no_card(tmp_path):
    with pytest.raises(ValueError, match="lacks .'config.json', 'processor_config.json'"):
        write_model_card(tmp_path)


def test_every_robot_has_its_contract(checkpoint):
    _, processor = tiny_policy()
    other = tiny_policy(contract={"fps": 5})[1]
    ImageWAMProcessor.join({"arm": processor, "hand": other}).save_pretrained(checkpoint, save_frozen=True)
    write_model_card(checkpoint)
    text = read(checkpoint)
    assert "### arm" in text and "### hand" in text and 'from_pretrained(checkpoint, embodiment="arm")' in text
    assert "4 actions at 10 per second" in text and "4 actions at 5 per second" in text
