import json

import pytest
import torch

from imagewam.cli import main
from imagewam.inference.memory_plan import plan_memory
from imagewam.inference.peak_memory import PeakMemory
from imagewam.inference.variants import VARIANTS

# Parameters of the frozen parts, with the head of the language model where it is loaded.
FROZEN = {
    "imagewam-flux2-4b": (84_046_115, 4_022_468_096),
    "imagewam-flux2-9b": (84_046_115, 8_190_735_360),
    "imagewam-omnigen2": (83_819_683, 3_085_938_688),
    "imagewam-ovis-u1": (83_653_863, 2_433_326_072),
    "fastwam": (704_688_668, 5_680_910_336),
    "fastwam-33-frames": (704_688_668, 5_680_910_336),
}


def test_peak_counts_what_is_alive_at_the_same_time():
    first = torch.empty(1000, device="meta")
    with PeakMemory() as memory:
        second = first + 1  # 4,000 bytes
        view = second.view(10, 100)
        third = view * 2
        assert memory.peak == 8000
        del second, view
        for _ in range(5):
            third = third + 1
        assert memory.peak == 8000
        fourth = torch.empty(6000, device="meta", dtype=torch.bfloat16)
        assert memory.peak == 4000 + 12000
        fourth.add_(1)
        assert memory.peak == 4000 + 12000


@pytest.mark.parametrize("name", VARIANTS)
def test_frozen_parts_have_their_sizes(name):
    with torch.device("meta"):
        parts = VARIANTS[name].vae(), VARIANTS[name].text_encoder()
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == FROZEN[name]


def test_the_plan_adds_up():
    """FLUX.2 4B: 25 layers, 31 words, the state and 392 image tokens, keys and values 3,072 wide."""
    prefix, denoise = (plan_memory(VARIANTS["imagewam-flux2-4b"], mode) for mode in ("prefix", "denoise"))
    assert prefix.editing == 2 * 3_875_544_576
    assert prefix.cache == 25 * 2 * (32 + 392) * 3072 * 2
    assert denoise.cache == 25 * 2 * (32 + 2 * 392) * 3072 * 2
    weights = prefix.editing + prefix.expert + prefix.vae
    for plan in (prefix, denoise):
        assert weights + plan.cache < plan.peak_cached < weights + 2 * 10**9
        assert plan.peak >= plan.peak_cached + plan.text_encoder
    assert denoise.peak_cached > prefix.peak_cached


def test_instructions_of_ovis_u1_cannot_be_cached():
    plan = plan_memory(VARIANTS["imagewam-ovis-u1"], "prefix")
    assert plan.peak_cached is None
    # About 300 tokens of words and image stand in front of the 392 tokens of the latent image.
    assert plan.cache > 18 * 2 * (256 + 392) * 1536 * 2


def test_the_command_prints_a_table_and_writes_bytes(tmp_path, capsys):
    main(["bench", "memory", "--variants", "imagewam-ovis-u1", "--output", str(tmp_path / "memory.json")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| imagewam-ovis-u1 | prefix | 2.10 | 1.47 |")
    numbers = json.loads((tmp_path / "memory.json").read_text())
    assert numbers["assumptions"]["canvas"] == [224, 448]
    assert [row["edit_mode"] for row in numbers["memory"]] == ["prefix", "denoise"]
    assert numbers["memory"][0]["editing"] == 2 * 1_127_227_408
    with pytest.raises(SystemExit, match="no such variant: imagewam-sana"):
        main(["bench", "memory", "--variants", "imagewam-sana"])
