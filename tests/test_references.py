import pytest

from imagewam.references import names_a_repo


@pytest.mark.parametrize("source", ["gpt2", "black-forest-labs/FLUX.2-klein-4B", "owner/name_1.0"])
def test_repo_ids(source):
    assert names_a_repo(source)


@pytest.mark.parametrize("source", [None, "", "/models/flux", "./flux", "../flux", "~/flux", "a/b/c", "runs/", "a b"])
def test_no_repo_ids(source):
    assert not names_a_repo(source)


def test_a_folder_of_this_machine_is_no_repo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names_a_repo("runs/policy")
    (tmp_path / "runs" / "policy").mkdir(parents=True)
    assert not names_a_repo("runs/policy")
