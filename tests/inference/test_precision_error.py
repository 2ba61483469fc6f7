"""What lower precision costs, on a tiny FLUX.2: errors grow as bits are lost, and bytes are those of the weights."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from transformers import Qwen3Config, Qwen3ForCausalLM

from imagewam.cli import main
from imagewam.commands import bench_quantization
from imagewam.inference.decision import Decision
from imagewam.inference.mid_size import VOCABULARY
from imagewam.inference.precision_error import Precision, in_precision, measure_precisions
from imagewam.inference.variants import VARIANTS

pytest.importorskip("torchao")


def tiny():
    network = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 1, "joint_attention_dim": 96}
    text = Qwen3Config(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=VOCABULARY,
        bos_token_id=None,
        eos_token_id=None,
    )
    return replace(
        VARIANTS["imagewam-flux2-4b"],
        backbone={"family": "flux2-klein", "transformer": network, "text_layers": [1, 2, 3]},
        vae=lambda: AutoencoderKLFlux2(block_out_channels=(8, 8, 8, 8), norm_num_groups=4),
        text_encoder=lambda: Qwen3ForCausalLM(text),
        settings={"action_hidden_size": 16},
    )


@pytest.fixture
def decision():
    torch.manual_seed(0)
    return Decision(tiny(), "prefix", torch.float32, device="cpu")


def observe(decision):
    pixels = torch.rand(decision.pixels.shape, generator=torch.Generator().manual_seed(1))

    def inputs(policy):
        ids = torch.arange(1, 8)[None]
        tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {"pixel_values": pixels, "state": decision.state, **tokens, "num_inference_steps": 2}

    return inputs


def test_a_row_says_how_far_the_actions_are_and_what_the_weights_take(decision):
    same, half, small = (Precision(*names) for names in (["float32"] * 2, ["bfloat16"] * 2, ["int8", "float32"]))
    rows = {row.precision: row for row in measure_precisions(decision.policy, observe(decision), [same, half, small])}
    assert rows[same].relative == rows[same].largest == 0
    assert 0 < rows[small].relative < rows[half].relative
    policy = decision.policy
    bytes_of = [4 * sum(p.numel() for p in part.parameters()) for part in (policy.backbone.transformer, policy)]
    assert (rows[same].editing, rows[same].editing + rows[same].expert) == tuple(bytes_of)
    assert (rows[half].editing, rows[half].expert, rows[half].frozen) == tuple(
        size // 2 for size in (rows[same].editing, rows[same].expert, rows[same].frozen)
    )
    assert rows[small].expert == rows[same].expert and rows[small].editing < rows[same].editing / 2
    assert policy.dtype == torch.float32 and policy.quantized_weights is None

    expected, found = (
        p.predict_action(**observe(decision)(p), generator=torch.Generator().manual_seed(0)).actions
        for p in (policy, in_precision(policy, small))
    )
    assert rows[small].largest == pytest.approx((found - expected).abs().max().item(), rel=1e-6)
    with pytest.raises(ValueError, match="against float32, got a policy in torch.bfloat16"):
        next(measure_precisions(policy.to(torch.bfloat16), observe(decision), [half]))


def test_the_command_prints_a_row_per_precision_and_writes_bytes(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(bench_quantization.MID_SIZE, "imagewam-flux2-4b", tiny())
    words = [
        "bench",
        "quantization",
        "--variants",
        "imagewam-flux2-4b",
        "--modes",
        "prefix",
        "denoise",
        "--batch",
        "2",
    ]
    main([*words, "--output", str(tmp_path / "error.json")])
    report = json.loads((tmp_path / "error.json").read_text())
    found = [(row["edit_mode"], *row["precision"].values()) for row in report["quantization"]]
    plain = [(name, name) for name in ("float32", "bfloat16", "float16")]
    rows = plain + [(name, rest) for name in ("int8", "fp8") for rest in ("float32", "bfloat16")]
    assert found == [(mode, *row) for mode in ("prefix", "denoise") for row in rows]
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].startswith("| imagewam-flux2-4b | prefix | float32 | float32 |")
    assert lines[4].endswith("| 0.0e+00 | 0.0e+00 |") and len(lines) == 4 + len(found)
    by_precision = {row[1:]: numbers["relative"] for row, numbers in zip(found, report["quantization"], strict=True)}
    assert 0 < by_precision["int8", "float32"] < by_precision["fp8", "float32"]
    assert 0 < by_precision["float16", "float16"] < by_precision["bfloat16", "bfloat16"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--variants", "imagewam-sana"], "variants: no such imagewam-sana; there are imagewam-flux2-4b"),
        (["--precisions", "int3"], "precisions: no such int3; there are float32"),
        (["--rest", "int8"], "rest: no such int8; there are float32, bfloat16, float16"),
        (["--dataset", "folder"], "give --checkpoint and --dataset, or none"),
        (["--checkpoint", "a", "--dataset", "b", "--modes", "prefix"], "give no --variants and no --modes"),
    ],
)
def test_wrong_options_are_one_clear_line(words, message):
    with pytest.raises(SystemExit, match=message):
        main(["bench", "quantization", *words])
