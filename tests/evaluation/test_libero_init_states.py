import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from imagewam.evaluation.libero_init_states import read_init_states


def write_pickle(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return path


def test_reads_what_torch_wrote(tmp_path):
    states = np.random.default_rng(0).normal(size=(3, 11))
    torch.save(states, tmp_path / "task.pruned_init")
    assert np.array_equal(read_init_states(tmp_path / "task.pruned_init"), states)


def test_reads_the_names_of_older_numpy(tmp_path):
    content = pickle.dumps(np.arange(6.0).reshape(2, 3), protocol=2).replace(b"numpy._core.", b"numpy.core.")
    states = read_init_states(write_pickle(tmp_path / "old.pruned_init", content))
    assert states.tolist() == [[0, 1, 2], [3, 4, 5]]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("content", [Harmful(), [np.zeros((2, 2)), Harmful()]])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = write_pickle(tmp_path / "bad.pruned_init", pickle.dumps(content))
    with pytest.raises(ValueError, match=r"bad.pruned_init is no file of .*mkdir is no part of a numpy array"):
        read_init_states(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "found"), [(np.zeros(4), r"float64 \[4\]"), (np.zeros((2, 2), int), "int64"), ([1.0], "list")]
)
def test_other_content_is_refused(tmp_path, content, found):
    path = write_pickle(tmp_path / "odd.pruned_init", pickle.dumps(content))
    with pytest.raises(ValueError, match=f"expected numbers .*found {found}"):
        read_init_states(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.pruned_init").write_text("no zip")
    with pytest.raises(ValueError, match="is no file of LIBERO start positions"):
        read_init_states(tmp_path / "text.pruned_init")
    with pytest.raises(FileNotFoundError):
        read_init_states(tmp_path / "none.pruned_init")
