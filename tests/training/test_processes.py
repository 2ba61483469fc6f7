"""Two processes on the CPU, as `torchrun` starts them; without an image loss some weights get no gradient."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
sys.path[:0] = sys.argv[2:]
import torch
from test_trainer import make_trainer
from tiny_training_parts import TinyDataset, tiny_policy

policy = tiny_policy(edit_mode="prefix", image_loss_weight=0.0)
trainer = make_trainer(
    sys.argv[1], policy, max_steps=2, per_device_train_batch_size=2, save_strategy="steps", save_steps=2,
    activation_checkpointing=True,
)
seen = []
collator = trainer.data_collator
def without_target(samples):
    batch = collator(samples)
    del batch["target_pixel_values"]
    return batch
trainer.data_collator = without_target
forward = policy.forward
def noted(*args, **kwargs):
    seen.append(kwargs["state"].tolist() + [torch.random.get_rng_state().sum().item()])
    return forward(*args, **kwargs)
policy.forward = noted
trainer.train()
weights = sum(p.double().sum().item() for p in policy.parameters())
rank = trainer.args.process_index
with open(f"{sys.argv[1]}/seen-{rank}.json", "w") as file:
    json.dump({"states": [row[:-1] for row in seen], "random": [row[-1] for row in seen], "weights": weights}, file)
"""


@pytest.mark.slow
def test_two_processes_share_weights_but_no_samples_and_no_noise(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    here = Path(__file__).parent
    words = [tmp_path / "script.py", tmp_path, here, here.parent]
    subprocess.run([*launch, *map(str, words)], check=True, timeout=300)
    one, two = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1))
    assert one["weights"] == two["weights"]
    samples = [tuple(state) for seen in (one, two) for batch in seen["states"] for state in batch]
    assert len(set(samples)) == 8  # 2 processes, 2 steps, 2 samples each
    assert not set(one["random"]) & set(two["random"])
    checkpoint = tmp_path / "checkpoint-2"
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
