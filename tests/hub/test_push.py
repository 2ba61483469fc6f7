"""The real client of the Hub against a server on this machine: what is pushed, resumed, loaded, and what fails."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants

from hub_server import TOKEN
from imagewam import ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.cli import main
from imagewam.hub import push_checkpoint, write_model_card
from imagewam.hub.checkpoint_files import checkpoint_files
from old_versions import retries_cut_downloads
from tiny_checkpoint import tiny_checkpoint
from tiny_processor import observation

REPO = "somebody/policy"


@pytest.fixture
def checkpoint(tmp_path):
    return tiny_checkpoint(tmp_path / "policy")


def actions(source, **options):
    """What the policy does with one observation, through its processor and its frozen parts."""
    policy = ImageWAMForActionPrediction.from_pretrained(source, **options)
    inputs = ImageWAMProcessor.from_pretrained(source, **options)(**observation(), return_tensors="pt")
    return policy.predict_action(**inputs, generator=torch.Generator().manual_seed(0)).actions


def change(checkpoint, factor):
    """Other weights in the same folder."""
    policy = ImageWAMForActionPrediction.from_pretrained(checkpoint)
    with torch.no_grad():
        policy.action_expert.action_encoder.weight.mul_(factor)
    policy.save_pretrained(checkpoint, save_frozen=True)


def client(code, hub, tmp_path, **environment):
    """A process of its own that sees the server as the Hub."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        **environment,
    }
    environment.pop("HF_HUB_CACHE", None)
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_what_is_pushed_is_what_is_loaded(model_hub, checkpoint, tmp_path):
    (checkpoint / "checkpoint-2").mkdir()
    for stranger in ("training_args.bin", "checkpoint-2/config.json", "step_log.jsonl", ".hidden"):
        (checkpoint / stranger).write_text("not for others")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 2
    commit = push_checkpoint(checkpoint, REPO)
    head = model_hub.head(REPO)
    assert sorted({*head} - {".gitattributes"}) == checkpoint_files(checkpoint)
    assert {"config.json", "processor_config.json", "README.md"} <= set(head) and "training_args.bin" not in head
    assert all(head[name] == (checkpoint / name).read_bytes() for name in checkpoint_files(checkpoint))
    assert model_hub.models[REPO].messages == ["initial commit", "Upload policy, processor and model card"]
    local, loaded = (ImageWAMForActionPrediction.from_pretrained(each).state_dict() for each in (checkpoint, REPO))
    assert list(local) == list(loaded) and all(torch.equal(local[name], loaded[name]) for name in local)
    assert ImageWAMProcessor.from_pretrained(REPO).to_dict() == ImageWAMProcessor.from_pretrained(checkpoint).to_dict()
    assert torch.equal(actions(REPO), actions(checkpoint))
    assert ModelCard.load(REPO).content == (checkpoint / "README.md").read_text()
    assert commit.oid == model_hub.models[REPO].commit_of("main")
    push_checkpoint(checkpoint, REPO)
    assert len(model_hub.models[REPO].messages) == 2  # nothing has changed: no empty commit


def test_policy_and_processor_by_themselves(model_hub, checkpoint):
    ImageWAMForActionPrediction.from_pretrained(checkpoint).push_to_hub(REPO, save_frozen=True, private=True)
    ImageWAMProcessor.from_pretrained(checkpoint).push_to_hub(REPO, save_frozen=True)
    assert model_hub.models[REPO].private
    assert torch.equal(actions(REPO), actions(checkpoint))


def test_a_push_that_is_killed_goes_on(model_hub, checkpoint, tmp_path):
    write_model_card(checkpoint)
    code = f"from imagewam.hub import push_checkpoint; push_checkpoint({str(checkpoint)!r}, {REPO!r})"
    large = {file for file in checkpoint_files(checkpoint) if file.endswith(".safetensors")}
    sizes = {file: (checkpoint / file).stat().st_size for file in large}
    process = client(code, model_hub, tmp_path)
    model_hub.upload_limit, model_hub.on_cut = sum(sizes.values()) // 4, process.kill
    assert process.wait(120) == -9, process.stdout.read()
    time.sleep(0.2)
    first = list(model_hub.uploaded)
    assert 0 < len(first) < len(large)
    assert list(model_hub.head(REPO)) == [".gitattributes"]  # a reader finds nothing, and no half of a policy
    with pytest.raises(OSError, match=f"{REPO} does not appear to have"):
        ImageWAMForActionPrediction.from_pretrained(REPO)
    process = client(code, model_hub, tmp_path)
    assert process.wait(120) == 0, process.stdout.read()
    second = model_hub.uploaded[len(first) :]
    assert len(set(second)) == len(second) == len(large) - len(first) and not set(first) & set(second)
    assert torch.equal(actions(REPO), actions(checkpoint))


def test_large_files_come_in_parts(model_hub, checkpoint):
    model_hub.part_size = 40_000
    push_checkpoint(checkpoint, REPO)
    assert any(number > 2 for _, number in model_hub.parts)
    assert torch.equal(actions(REPO), actions(checkpoint))


def test_each_revision_is_loaded_as_it_was(model_hub, checkpoint):
    first = push_checkpoint(checkpoint, REPO).oid
    expected = actions(checkpoint)
    change(checkpoint, 2.0)
    push_checkpoint(checkpoint, REPO)
    assert torch.equal(actions(REPO, revision=first), expected)
    assert torch.equal(actions(REPO), actions(checkpoint)) and not torch.equal(actions(REPO), expected)
    head = model_hub.head(REPO)  # the former shards would be read in place of the one file, or beside it
    assert [name for name in head if name.startswith("model")] == ["model.safetensors"]
    change(checkpoint, 2.0)
    push_checkpoint(checkpoint, REPO, revision="wider")
    assert torch.equal(actions(REPO, revision="wider"), actions(checkpoint))
    with pytest.raises(OSError, match="v9"):
        ImageWAMForActionPrediction.from_pretrained(REPO, revision="v9")


def test_the_processor_stays_at_the_commit_that_it_was_loaded_at(model_hub, checkpoint):
    push_checkpoint(checkpoint, REPO)
    processor = ImageWAMProcessor.from_pretrained(REPO)
    files = {name: content for name, content in model_hub.head(REPO).items() if "tokenizer" not in name}
    model_hub.models[REPO].commit("main", files, "without tokenizer")
    assert len(processor(**observation())["input_ids"]) == 1


def test_a_pull_request_leaves_the_main_branch(model_hub, checkpoint):
    push_checkpoint(checkpoint, REPO)
    before = model_hub.head(REPO)
    change(checkpoint, 3.0)
    commit = push_checkpoint(checkpoint, REPO, create_pr=True)
    assert commit.pr_revision == "refs/pr/1" and model_hub.head(REPO) == before
    assert torch.equal(actions(REPO, revision="refs/pr/1"), actions(checkpoint))
    with pytest.raises(ValueError, match="leave out the revision 'v1', or create_pr"):
        push_checkpoint(checkpoint, REPO, create_pr=True, revision="v1")


def test_a_policy_in_a_subfolder(model_hub, checkpoint, tmp_path):
    shutil.move(checkpoint, tmp_path / "repo" / "libero")
    expected = actions(tmp_path / "repo" / "libero")
    assert torch.equal(actions(tmp_path / "repo", subfolder="libero"), expected)
    HfApi().create_repo(REPO)
    HfApi().upload_folder(repo_id=REPO, folder_path=tmp_path / "repo")
    assert torch.equal(actions(REPO, subfolder="libero"), expected)


def test_offline_what_is_in_the_cache_is_loaded(model_hub, checkpoint, tmp_path):
    push_checkpoint(checkpoint, REPO)
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from test_push import actions; "
        f"print('actions', actions({REPO!r}).flatten().tolist())"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    online = client(code, model_hub, tmp_path, PYTHONPATH=paths)
    found = online.communicate(timeout=120)[0]
    assert online.returncode == 0, found
    model_hub.close()
    offline = client(code, model_hub, tmp_path, PYTHONPATH=paths, HF_HUB_OFFLINE="1")
    again = offline.communicate(timeout=120)[0]
    assert offline.returncode == 0, again
    numbers = [re.search(r"^actions \[(.*)\]$", text, re.MULTILINE)[1] for text in (found, again)]
    assert numbers[0] == numbers[1] == str(actions(checkpoint).flatten().tolist())[1:-1]


def test_offline_without_a_cache_the_error_says_so(model_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="cached"):
        ImageWAMForActionPrediction.from_pretrained(REPO)


def test_a_private_repo_needs_a_token(model_hub, checkpoint, monkeypatch):
    push_checkpoint(checkpoint, REPO, private=True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    for part in (ImageWAMForActionPrediction, ImageWAMProcessor):
        with pytest.raises(OSError, match=f"(?s){REPO}.*private.*token"):
            part.from_pretrained(REPO)
    with pytest.raises(PermissionError, match=f"does not let this token write to {REPO}.*401"):
        push_checkpoint(checkpoint, REPO)
    expected = actions(checkpoint)
    assert torch.equal(actions(REPO, token=TOKEN), expected)  # the frozen parts in the repo need it as well


def test_a_repo_of_somebody_else_is_not_written_to(model_hub, checkpoint):
    with pytest.raises(PermissionError, match="does not let this token write to else/policy.*403"):
        push_checkpoint(checkpoint, "else/policy")
    assert model_hub.objects == {}


def test_nothing_private_goes_into_a_public_repo(model_hub, checkpoint):
    HfApi().create_repo(REPO)
    with pytest.raises(ValueError, match=f"{REPO} is there already and is public: nothing was uploaded"):
        push_checkpoint(checkpoint, REPO, private=True)
    assert model_hub.objects == {} and list(model_hub.head(REPO)) == [".gitattributes"]


@retries_cut_downloads
def test_a_download_that_is_cut_goes_on_where_it_stopped(model_hub, checkpoint):
    push_checkpoint(checkpoint, REPO)
    model_hub.download_limit, model_hub.download_cuts = 60_000, 2
    assert torch.equal(actions(REPO), actions(checkpoint))
    assert model_hub.download_cuts == 0


@retries_cut_downloads
def test_a_download_that_cannot_be_ended_leaves_nothing_that_could_be_loaded(model_hub, checkpoint, monkeypatch):
    push_checkpoint(checkpoint, REPO)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    model_hub.download_limit, model_hub.download_cuts = 0, 10**6
    with pytest.raises(Exception, match=r".") as raised:
        ImageWAMForActionPrediction.from_pretrained(REPO)
    assert isinstance(raised.value, OSError), raised.value
    model_hub.download_cuts = 0
    assert torch.equal(actions(REPO), actions(checkpoint))


def test_the_command(model_hub, checkpoint, capsys):
    (checkpoint / "optimizer.pt").write_text("")
    main(["push", str(checkpoint), REPO, "--private", "--revision", "v1", "--message", "First"])
    printed = capsys.readouterr().out
    files = checkpoint_files(checkpoint)
    assert f"pushed: {len(files)} files, {model_hub.url}/{REPO}/commit/" in printed
    assert "left here, being no part of a checkpoint: optimizer.pt" in printed
    assert model_hub.models[REPO].private and model_hub.models[REPO].messages[-1] == "First"
    assert set(files) <= set(model_hub.head(REPO, "v1")) and "config.json" not in model_hub.head(REPO)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(SystemExit, match="imagewam push: .*config.json is no JSON"):
        main(["push", str(checkpoint), REPO])
