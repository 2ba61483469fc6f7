"""The smallest policy, processor and dataset with the interfaces that the trainer uses."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

HORIZON, STATE_DIM, ACTION_DIM = 4, 3, 2
SCALE = 10.0  # physical units = SCALE * normalised


class TinyPolicy(nn.Module):
    def __init__(self, action_dim: int = ACTION_DIM):
        super().__init__()
        self.config = SimpleNamespace(action_dim=action_dim, state_dim=STATE_DIM, action_horizon=HORIZON)
        self.linear = nn.Linear(STATE_DIM, HORIZON * action_dim)
        self.dropout = nn.Dropout(0.1)
        self.predictions = []

    def check_frozen_references(self):
        pass

    def forward(self, state, actions, action_is_pad, target_pixel_values, **kwargs):
        noise = torch.randn_like(actions)
        predicted = self.linear(self.dropout(state)).view_as(actions)
        action_loss = ((predicted - actions + 0.1 * noise).square().mean(-1) * ~action_is_pad).mean()
        image_loss = (target_pixel_values.mean() + self.linear.bias.mean()).square()
        return SimpleNamespace(loss=action_loss + image_loss, action_loss=action_loss, image_loss=image_loss)

    def predict_action(self, state, num_inference_steps, **kwargs):
        return SimpleNamespace(actions=self.linear(state).view(len(state), HORIZON, -1))

    def save_pretrained(self, path, state_dict=None, save_frozen=False):
        Path(path).mkdir(parents=True, exist_ok=True)
        save_file(state_dict or self.state_dict(), Path(path) / "model.safetensors")
        (Path(path) / "saved_frozen.json").write_text(json.dumps(save_frozen))


class TinyProcessor:
    def __init__(self):
        self.contract = SimpleNamespace(
            cameras=(SimpleNamespace(name="front"),),
            state=SimpleNamespace(names=("a", "b", "c")),
            action=SimpleNamespace(names=("a", "b")),
            fps=10.0,
            horizon=HORIZON,
        )

    def decode_actions(self, actions, state):
        return np.asarray(actions, dtype=np.float32) * SCALE

    def check_statistics(self, statistics):
        if statistics != "mine":
            raise ValueError(f"statistics are {statistics!r}, the processor has 'mine'")

    def save_pretrained(self, path, save_frozen=False):
        (Path(path) / "processor_config.json").write_text("{}")


class TinyDataset(torch.utils.data.Dataset):
    def __init__(self, size: int = 16, seed: int = 0, horizon: int = HORIZON):
        generator = np.random.default_rng(seed)
        self.states = generator.normal(size=(size, STATE_DIM)).astype(np.float32) * SCALE
        self.horizon = horizon

    def __len__(self):
        return len(self.states)

    def __getitem__(self, index):
        image = np.full((8, 8, 3), index, dtype=np.uint8)
        actions = np.repeat(self.states[index, None, :ACTION_DIM], self.horizon, axis=0)
        return {
            "images": {"front": image},
            "target_images": {"front": image},
            "state": self.states[index],
            "actions": actions,
            "action_is_pad": np.arange(self.horizon) >= self.horizon - index % 2,
        }


def collate(samples):
    names = ("state", "actions", "action_is_pad")
    stacked = {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in names}
    pixels = torch.from_numpy(np.stack([s["target_images"]["front"] for s in samples])).float() / 255
    return {
        "state": stacked["state"] / SCALE,
        "actions": stacked["actions"] / SCALE,
        "action_is_pad": stacked["action_is_pad"],
        "target_pixel_values": pixels.permute(0, 3, 1, 2),
    }
