"""The video baseline through the same commands as every other policy."""

import numpy as np
import pytest
from PIL import Image

import tiny_wan
from imagewam import ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.cli import main
from imagewam.data.writer import LeRobotWriter

LENGTH = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two episodes, shorter than a chunk of 32 actions."""
    root = tmp_path_factory.mktemp("data") / "steady"
    vector = {"dtype": "float32", "shape": [2], "names": ["shoulder", "elbow"]}
    camera = {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, "observation.images.front": camera}
    generator = np.random.default_rng(0)
    with LeRobotWriter(root, fps=10, features=features) as writer:
        for _ in range(2):
            states = generator.normal(size=(LENGTH, 2)).astype(np.float32)
            images = generator.integers(0, 256, (LENGTH, 16, 16, 3), dtype=np.uint8)
            frames = {"observation.state": states, "action": states, "observation.images.front": images}
            writer.add_episode(frames, task="move on")
    return root


def test_the_preset_trains_resumes_and_predicts(dataset, tmp_path):
    tiny_wan.pipeline(["move on"]).save_pretrained(tmp_path / "wan")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
        dataset: {dataset}
        train_episodes: "0"
        eval_episodes: "1"
        camera_sizes: [16x16]
        pipeline: {tmp_path / "wan"}
        preset: fastwam
        edit_mode: joint
        action_hidden_size: 24
        num_inference_steps: 2
        save_frozen: true
        max_steps: 2
        save_steps: 1
        per_device_train_batch_size: 2
        use_cpu: true
        disable_tqdm: true
        """
    )
    folder = tmp_path / "policy"
    main(["train", str(recipe), "--output_dir", str(folder)])
    main(["train", str(recipe), "--output_dir", str(folder), "--resume_from_checkpoint", "last"])
    config = ImageWAMForActionPrediction.from_pretrained(folder).config
    assert (config.edit_mode, config.context_timestep, config.action_horizon) == ("joint", 0, 32)
    assert config.target_offsets == list(range(4, 33, 4))
    assert ImageWAMProcessor.from_pretrained(folder).contract.horizon == 32
    picture = tmp_path / "later" / "frame.png"
    main(["predict", "--checkpoint", str(folder), "--dataset", str(dataset), "--edited_frame", str(picture)])
    assert Image.open(picture).size == (16, 16)
    with pytest.raises(SystemExit):
        main(["train", str(recipe), "--output_dir", str(tmp_path / "other"), "--precompute"])
