import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imagewam.tiny.half_precision import store_in_float16


def test_all_files_below_a_folder_are_halved(tmp_path):
    weights = {"a": torch.tensor([1.0, 1 / 3]), "steps": torch.tensor([70000])}
    (tmp_path / "frozen").mkdir()
    for path in (tmp_path / "model.safetensors", tmp_path / "frozen" / "vae.safetensors"):
        save_file(weights, path, metadata={"format": "pt"})
    store_in_float16(tmp_path)
    for path in (tmp_path / "model.safetensors", tmp_path / "frozen" / "vae.safetensors"):
        stored = load_file(path)
        assert stored["a"].dtype == torch.float16 and stored["steps"].tolist() == [70000]
        assert torch.equal(stored["a"], weights["a"].half())
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_values_beyond_float16_are_refused_and_the_file_stays(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"big": torch.tensor([7e4])}, path)
    with pytest.raises(ValueError, match="big has values beyond float16's largest, 65504"):
        store_in_float16(tmp_path)
    assert load_file(path)["big"].dtype == torch.float32
