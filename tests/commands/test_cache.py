"""`imagewam cache` fills what the same recipe reads, once."""

import numpy as np
import pytest

from imagewam.cli import main
from imagewam.data import LeRobotWriter


@pytest.fixture
def recipe(tmp_path):
    vector = {"dtype": "float32", "shape": [2], "names": ["shoulder", "elbow"]}
    picture = {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, "observation.images.front": picture}
    rng = np.random.default_rng(0)
    with LeRobotWriter(tmp_path / "data", fps=10, features=features) as writer:
        for task in ("push", "lift", "push"):
            states = np.cumsum(rng.uniform(0.1, 0.2, (6, 2)), axis=0).astype(np.float32)
            frames = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
            episode = {"observation.state": states, "action": states, "observation.images.front": frames}
            writer.add_episode(episode, task=task)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"dataset: {tmp_path / 'data'}\neval_episodes: '2'\ncamera_sizes: [16x16]\nhorizon: 4\npipeline: tiny\n"
        f"tiny_vae_steps: 2\naction_hidden_size: 16\nuse_cpu: true\nseed: 3\ncache_dir: {tmp_path / 'cache'}\n"
    )
    return path


def entries(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".arrow", ".safetensors")}


def test_a_recipes_caches_are_filled_once(recipe, tmp_path, capsys):
    main(["cache", str(recipe), "--cache_frames"])
    assert "12 rows of" in capsys.readouterr().out
    main(["cache", str(recipe), "--precompute"])
    found = entries(tmp_path / "cache")
    kinds = [path.relative_to(tmp_path / "cache").parts[0] for path in found]
    assert {kind: kinds.count(kind) for kind in kinds} == {"frames": 3, "latents": 3, "instructions": 2}
    for option in ("--cache_frames", "--precompute"):
        main(["cache", str(recipe), option])
    assert entries(tmp_path / "cache") == found


def test_a_recipe_that_asks_for_no_cache_is_told(recipe):
    with pytest.raises(SystemExit, match="nothing to cache: give --cache_frames"):
        main(["cache", str(recipe)])


@pytest.mark.parametrize("command", ["cache", "train"])
def test_a_text_encoder_that_must_stay_is_told_before_it_is_run(recipe, tmp_path, command):
    """Training with cached instructions lets go of it, and nobody knows where the tiny pipeline's could come from."""
    with pytest.raises(SystemExit, match="text_encoder cannot be released.*start from a pipeline on the hub"):
        main([command, str(recipe), "--cache_instructions", "--output_dir", str(tmp_path / "run")])
    assert not entries(tmp_path / "cache")


def test_instructions_of_a_saved_policy_are_cached_once(recipe, tmp_path):
    policy = tmp_path / "policy"
    main(["train", str(recipe), "--output_dir", str(policy), "--max_steps", "1", "--save_frozen"])
    words = ["cache", "--checkpoint", str(policy), "--dataset", str(tmp_path / "data"), "--cache_instructions"]
    words += ["--cache_dir", str(tmp_path / "cache"), "--use_cpu"]
    main(words)
    found = entries(tmp_path / "cache")
    assert len(found) == 2
    main(words)
    assert entries(tmp_path / "cache") == found
