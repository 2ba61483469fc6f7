import json

import pytest

from imagewam.cli import main
from imagewam.inference.cost import plan_cost
from imagewam.inference.variants import VARIANTS

TERA = 10**12


@pytest.mark.parametrize("mode, limit", [("prefix", 2.8), ("denoise", 5.1)])
def test_a_decision_on_flux2_4b_costs_no_more_than_planned(mode, limit):
    """The paper reports 9.72 TFLOP, with the instruction padded to 512 tokens."""
    plan = plan_cost(VARIANTS["imagewam-flux2-4b"], mode)
    assert limit - 0.3 < plan.decision(num_steps=3) / TERA <= limit
    assert plan.edit == 0 and (plan.target_keys > 0) is (mode == "denoise")
    assert plan.context_tokens == 32 + 392 * (2 if mode == "denoise" else 1)


def test_the_context_pass_ends_with_the_last_keys():
    """The whole pass is 2.659 TFLOP; left out are the head and, of the last block, all but keys and values."""
    plan = plan_cost(VARIANTS["imagewam-flux2-4b"], "prefix")
    tokens, width, mlp = 424, 3072, 9216
    left_out = 2 * 2 * tokens * tokens * width + 2 * tokens * (width + mlp) * width
    left_out += 2 * tokens * width * (width + 2 * mlp)  # queries, and the MLP's input
    left_out += 2 * 392 * width * 128 + 2 * width * 2 * width  # projection of image tokens, norm's modulation
    assert (plan.context + left_out) / TERA == pytest.approx(2.659, abs=0.001)
    assert left_out / TERA > 0.08


def test_the_expert_costs_what_its_layers_cost():
    """FLUX.2 4B: 16 action tokens through every weight, and attention of 16 queries over 424 + 16 keys."""
    plan = plan_cost(VARIANTS["imagewam-flux2-4b"], "prefix")
    linear = 2 * 16 * (25 * 25_166_080 - 25 * 256)  # QK norms are no products
    modulation = 2 * (1024 * (256 + 1024 + 6 * 1024 + 3 * 1024 + 2 * 1024) + 16 * 2 * 7 * 1024)
    attention = 25 * 2 * 2 * 16 * (424 + 16) * 3072
    assert plan.action_step == pytest.approx(linear + modulation + attention, rel=1e-4)


def test_the_video_baseline_costs_more_the_more_of_the_video_it_denoises():
    """Nine frames are 3 x 98 tokens, 33 frames 9 x 98."""
    plans = {mode: plan_cost(VARIANTS["fastwam"], mode) for mode in VARIANTS["fastwam"].modes}
    assert [plan.context_tokens for plan in plans.values()] == [98, 294, 294]
    prefix, joint, imagine = (plan.decision(num_steps=10) for plan in plans.values())
    step = plans["joint"].action_step
    assert joint == plans["joint"].context + 10 * (plans["joint"].edit + step)
    assert 0 < imagine - joint == plans["imagine"].target_keys < plans["imagine"].edit and prefix < joint / 8
    every_frame = plan_cost(VARIANTS["fastwam-33-frames"], "joint")
    assert every_frame.context_tokens == 882
    ours = plan_cost(VARIANTS["imagewam-flux2-4b"], "prefix")
    assert ours.decision(num_steps=3) < every_frame.decision(num_steps=1) / 3


def test_the_command_prints_a_table_and_writes_operations(tmp_path, capsys):
    main(["bench", "cost", "--variants", "imagewam-ovis-u1", "--output", str(tmp_path / "cost.json")])
    header, _, prefix, denoise = capsys.readouterr().out.splitlines()
    assert header.count("|") == prefix.count("|") == denoise.count("|")
    assert prefix.startswith("| imagewam-ovis-u1 | prefix | 1.127 | 0.786 |")
    rows = json.loads((tmp_path / "cost.json").read_text())["cost"]
    assert rows[0]["target_keys"] == 0 < rows[1]["target_keys"] and rows[0]["context"] == rows[1]["context"]
