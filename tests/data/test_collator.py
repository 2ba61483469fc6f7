import numpy as np
import torch

from imagewam.data import ActionChunkDataset, ImageWAMCollator, LeRobotDataset, compute_statistics
from imagewam.processing.camera_layout import CameraSpec
from imagewam.processing.contract import ActionSpec, PolicyContract, StateSpec
from imagewam.processing_imagewam import ImageWAMProcessor
from tiny_processor import CHAT_FORMAT, tiny_tokenizer

HORIZON = 5


def test_a_batch_of_recorded_samples(v3_root):
    dataset = LeRobotDataset(v3_root)
    action = ActionSpec(dataset.action_names, normalization="min_max", relative_to_state=(0, None))
    contract = PolicyContract(
        cameras=(CameraSpec("top", 32, 32),),
        layout="single",
        state=StateSpec(dataset.state_names),
        action=action,
        fps=dataset.fps,
        horizon=HORIZON,
    )
    statistics = compute_statistics(dataset, HORIZON, action.relative_to_state)
    processor = ImageWAMProcessor(contract, statistics, tokenizer=tiny_tokenizer(), prompt_format=CHAT_FORMAT)
    samples = [ActionChunkDataset(dataset, HORIZON, cameras=["top"])[i] for i in (0, 8)]

    batch = ImageWAMCollator(processor)(samples)

    assert batch["pixel_values"].shape == batch["target_pixel_values"].shape == (2, 3, 32, 32)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert (batch["state"].shape, batch["actions"].shape) == ((2, 3), (2, HORIZON, 2))
    torch.testing.assert_close(batch["action_is_pad"], torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))
    valid = ~batch["action_is_pad"]
    assert batch["actions"][valid].abs().max() <= 1 + 1e-5  # statistics and processor mean the same relative actions
    decoded = processor.decode_actions(batch["actions"], state=np.stack([sample["state"] for sample in samples]))
    recorded = np.stack([sample["actions"] for sample in samples])
    np.testing.assert_allclose(decoded[valid.numpy()], recorded[valid.numpy()], atol=1e-5)
