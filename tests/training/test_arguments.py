import pytest
import torch
from transformers import get_scheduler

from imagewam.training.arguments import ImageWAMTrainingArguments


def test_defaults_are_the_papers_recipe(tmp_path):
    args = ImageWAMTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.adam_beta1, args.adam_beta2, args.learning_rate, args.weight_decay) == (0.9, 0.95, 1e-4, 1e-2)
    assert args.max_grad_norm == 1.0
    assert args.get_warmup_steps(1000) == 50


def test_schedule_warms_up_over_a_twentieth_and_ends_at_a_hundredth(tmp_path):
    args = ImageWAMTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    scheduler = get_scheduler(
        args.lr_scheduler_type, optimizer, args.get_warmup_steps(200), 200, args.lr_scheduler_kwargs
    )
    rates = []
    for _ in range(200):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates[4] == pytest.approx(0.5e-4)
    assert max(rates) == rates[9] == pytest.approx(1e-4)
    assert rates[-1] == pytest.approx(1e-6)


def test_another_schedule_gets_no_minimum_rate(tmp_path):
    args = ImageWAMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, lr_scheduler_type="constant")
    assert args.lr_scheduler_kwargs is None


def test_averages_exclude_the_best_model_at_the_end(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    with pytest.raises(ValueError, match="ema_decay 0.9 and load_best_model_at_end.*give one of the two"):
        ImageWAMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, ema_decay=0.9, **best)
    ImageWAMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **best)
