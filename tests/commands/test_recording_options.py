"""Which recordings a training takes: several datasets, held-out shares, tasks, idle frames, episodes left out."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagewam import ImageWAMProcessor
from imagewam.cli import main
from imagewam.commands.data_options import DataOptions
from imagewam.data import LeRobotDataset, LeRobotWriter, MixtureDataset, compute_statistics
from imagewam.data.idle_frames import write_nonidle_ranges

LENGTH = 8
TASKS = ("lift the block", "push the block")


def write_dataset(root, num_episodes, seed, tasks=TASKS):
    vector = {"dtype": "float32", "shape": [2], "names": ["shoulder", "elbow"]}
    image = {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, "observation.images.front": image}
    generator = np.random.default_rng(seed)
    with LeRobotWriter(root, fps=10, features=features) as writer:
        for episode in range(num_episodes):
            rows = {key: generator.uniform(0, 1, (LENGTH, 2)) for key in ("observation.state", "action")}
            rows["observation.images.front"] = generator.integers(0, 256, (LENGTH, 16, 16, 3), dtype=np.uint8)
            writer.add_episode(rows, task=tasks[episode % 2])
    return str(root)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return [write_dataset(root / f"part{seed}", 4 + 2 * seed, seed) for seed in (0, 1)]


def episodes(recordings):
    return [list(recording.episode_lengths) for recording in recordings]


def test_all_episodes_but_the_held_out_ones_are_trained_on(datasets):
    train, held_out = DataOptions(datasets[:1], eval_episodes="1,3").load()
    assert episodes(train) == [[0, 2]] and episodes(held_out) == [[1, 3]]
    train, held_out = DataOptions(datasets[:1], train_episodes="0:2").load()
    assert episodes(train) == [[0, 1]] and held_out == []
    with pytest.raises(ValueError, match=r"episodes \[1\] are both trained on and held out"):
        DataOptions(datasets[:1], train_episodes="0:2", eval_episodes="1:3").load()


def test_a_share_of_every_task_is_held_out_of_every_dataset(datasets):
    train, held_out = DataOptions(datasets, validation="0.5").load()
    assert [len(x) for x in episodes(train)] == [2, 3] and [len(x) for x in episodes(held_out)] == [2, 3]
    for recording in held_out:
        assert {task for tasks in recording.episode_tasks.values() for task in tasks} == set(TASKS)
    assert episodes(DataOptions(datasets, validation="0.5").load()[1]) == episodes(held_out)
    others = [episodes(DataOptions(datasets, validation="0.5", split_seed=seed).load()[1]) for seed in range(1, 6)]
    assert episodes(held_out) not in others or len(set(map(str, others))) > 1
    assert [len(x) for x in episodes(DataOptions(datasets, validation="1").load()[1])] == [1, 1]
    with pytest.raises(ValueError, match="expected a share such as 0.1 or a number such as 5, got 'half'"):
        DataOptions(datasets, validation="half").load()


def test_tasks_and_lengths_choose_episodes(datasets):
    assert episodes(DataOptions(datasets, tasks=[TASKS[1]]).load()[0]) == [[1, 3], [1, 3, 5]]
    with pytest.raises(ValueError, match=r"no episode of .*part0, .*part1 has the tasks \['dance'\]; there are \['li"):
        DataOptions(datasets, tasks=["dance", TASKS[0]]).load()
    with pytest.raises(ValueError, match="at least 9 frames"):
        DataOptions(datasets, min_episode_length=LENGTH + 1).load()


def test_datasets_may_have_tasks_that_others_lack(datasets, tmp_path):
    other = write_dataset(tmp_path / "other", 4, 5, tasks=(TASKS[1], "turn the block"))
    both = [datasets[0], other]
    assert episodes(DataOptions(both, tasks=["turn the block", TASKS[0]]).load()[0]) == [[0, 2], [1, 3]]
    assert episodes(DataOptions(both, tasks=[TASKS[1]]).load()[0]) == [[1, 3], [0, 2]]
    with pytest.raises(ValueError, match=r"part0 has none of the tasks \['turn the block'\], its own are \['lift"):
        DataOptions(both, tasks=["turn the block"]).load()


def test_idle_frames_start_no_training_sample_and_are_told(datasets, tmp_path, caplog):
    path = tmp_path / "nonidle_ranges.json"
    write_nonidle_ranges(path, {0: [(0, 3), (5, 8)]})
    (train,), _ = DataOptions(datasets[:1], nonidle_ranges=str(path)).load()
    assert len(train) == 4 * LENGTH - 2 and "2 idle frames start no sample: {0: 2}" in caplog.text


@pytest.fixture
def damaged(tmp_path):
    """Three episodes, of which the second holds a NaN."""
    root = write_dataset(tmp_path / "bad", 3, seed=2)
    (table,) = (tmp_path / "bad" / "data").rglob("*.parquet")
    rows = pq.read_table(table).to_pylist()
    rows[LENGTH + 2]["action"] = [0.5, float("nan")]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(table)), table)
    return root


def test_bad_episodes_are_an_error_unless_they_are_to_be_left_out(damaged, caplog):
    root = damaged
    with pytest.raises(ValueError, match="'action' is nan in episode 1, frame 2"):
        compute_statistics(DataOptions([root]).load()[0], horizon=4)
    (train,), _ = DataOptions([root], skip_bad_episodes=True).load()
    assert list(train.episode_lengths) == [0, 2]
    assert "1 of 3 episodes are left out" in caplog.text and "'action' is nan in episode 1" in caplog.text
    assert np.isfinite(compute_statistics([train], horizon=4)["action"]["max"]).all()


def test_only_the_chosen_episodes_are_looked_at_for_damage(damaged, caplog):
    train, held_out = DataOptions([damaged], train_episodes="0", eval_episodes="2", skip_bad_episodes=True).load()
    assert (episodes(train), episodes(held_out), caplog.text) == ([[0]], [[2]], "")
    DataOptions([damaged], train_episodes="0:2", skip_bad_episodes=True).load()
    assert "1 of 2 episodes are left out" in caplog.text
    with pytest.raises(ValueError, match=r"no episode is left to hold out of \[1\]"):
        DataOptions([damaged], eval_episodes="1", skip_bad_episodes=True).load()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train_episodes": "0:2"}, "train_episodes: of one dataset only, got 2"),
        ({"nonidle_ranges": "x.json"}, "nonidle_ranges: of one dataset only"),
        ({"dataset_revision": "main"}, "dataset_revision: of one dataset only"),
        ({"dataset_weights": [1.0]}, "1 dataset_weights for 2 datasets"),
        ({"validation": "1", "eval_episodes": "0"}, "eval_episodes: of one dataset only|both hold episodes out"),
    ],
)
def test_options_that_contradict_one_another_are_errors(datasets, options, message):
    with pytest.raises(ValueError, match=message):
        DataOptions(datasets, **options).load()
    with pytest.raises(ValueError, match="give --dataset"):
        DataOptions().load()
    with pytest.raises(ValueError, match="named once"):
        DataOptions([datasets[0]] * 2).load()


def test_a_resumed_run_compares_the_order_and_the_weights_of_datasets(datasets):
    def settings(roots, weights):
        data = DataOptions(roots, dataset_weights=weights)
        return data.run_settings(data.load()[0])

    ours, theirs = settings(datasets, [3.0, 1.0]), settings(datasets[::-1], [1.0, 3.0])
    assert ours["datasets"] == theirs["datasets"][::-1] and len(set(ours["datasets"])) == 2
    assert (ours["dataset_weights"], theirs["dataset_weights"]) == ([3.0, 1.0], [1.0, 3.0])


def test_frames_of_several_datasets_are_not_encoded_once(datasets):
    with pytest.raises(ValueError, match="--precompute is for one dataset"):
        DataOptions(datasets, precompute=True).check_precomputable()


def test_weights_mix_the_samples(datasets):
    data = DataOptions(datasets, dataset_weights=[3, 1])
    parts = [[{"row": row} for row in range(20)], [{"row": row} for row in range(60)]]
    mixed = data.mixed(parts, seed=0)
    assert isinstance(mixed, MixtureDataset) and mixed.counts == dict(zip(datasets, (60, 20), strict=True))
    assert data.mixed(parts[:1], seed=0) is parts[0]


def test_several_datasets_train_one_policy(datasets, tmp_path, capsys):
    words = ["--pipeline", "tiny", "--tiny_vae_steps", "2", "--camera_sizes", "16x16", "--horizon", "4"]
    words += ["--action_hidden_size", "16", "--num_inference_steps", "2", "--save_frozen", "true", "--max_steps", "2"]
    words += ["--per_device_train_batch_size", "2", "--use_cpu", "true", "--disable_tqdm", "true"]
    caches = ["--cache_frames", "true", "--cache_dir", str(tmp_path / "caches")]
    run = ["train", "--dataset", *datasets, "--dataset_weights", "3", "1", "--validation", "1", *words, *caches]
    main([*run, "--output_dir", str(tmp_path / "run")])
    processor = ImageWAMProcessor.from_pretrained(tmp_path / "run")
    chosen, _ = DataOptions(datasets, validation="1").load()
    expected = compute_statistics(chosen, horizon=4)
    assert processor.statistics["action"]["max"] == pytest.approx(expected["action"]["max"])
    assert sorted(part.name for part in processor.training_data.parts) == ["part0", "part1"]
    metrics = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert metrics["eval_action_mae"] > 0 and "held-out action error" in capsys.readouterr().out
    assert sum(len(LeRobotDataset(root).episode_lengths) for root in datasets) - 2 == sum(
        len(recording.episode_lengths) for recording in chosen
    )
