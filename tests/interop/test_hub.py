"""Models of the Hugging Face hub: addresses, downloads from a stand-in on this machine, and the run folders they become."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxalign import hub
from jaxalign.annotation.judges import get_judge
from jaxalign.errors import UserError
from jaxalign.interop import opening
from jaxalign.interop.checkpoint_sources import open_source
from jaxalign.interop.convert import convert
from jaxalign.recipes.round_prompts import PromptSource
from jaxalign.recipes.rounds import make_recipe
from jaxalign.runs.folder import Run
from tests.fixtures.hub import Hub, serve

pytest.importorskip("huggingface_hub")

# Reads addresses from its arguments, and prints for each the files and the name of the folder, or the error.
DOWNLOADS = """
import json, os, sys
from jaxalign import hub
from jaxalign.errors import UserError
answers = []
for address in sys.argv[1:]:
    try:
        folder = hub.download(address)
        config = open(os.path.join(folder, "config.json")).read()
        answers.append([sorted(os.listdir(folder)), os.path.basename(folder), config])
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.mark.parametrize(
    ("address", "name", "revision"),
    [
        ("hf://google/flan-t5-small", "google/flan-t5-small", None),
        ("hf://google/t5-v1_1-xl@refs/pr/4", "google/t5-v1_1-xl", "refs/pr/4"),
        ("hf://t5-small@v1.0", "t5-small", "v1.0"),
    ],
)
def test_addresses(address, name, revision):
    assert hub.parse(address) == hub.Repository(name, revision)
    assert str(hub.parse(address)) == address


@pytest.mark.parametrize(
    "address", ["hf://", "hf://a/b/c", "hf://a b/c", "hf://a/b@", "hf://../x@..;", "hf://a/b@c d"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match="write hf://OWNER/NAME"):
        hub.parse(address)


def test_a_resumed_run_keeps_its_commit():
    pinned = hub.pinned("hf://me/model", "/cache/snapshots/abc")
    assert pinned == "hf://me/model@abc"
    assert hub.same_repository("hf://me/model", pinned)
    assert hub.same_repository("hf://me/model@abc", pinned)
    assert hub.same_repository("hf://me/model@branch", pinned)
    assert not hub.same_repository(f"hf://me/model@{'d' * 40}", pinned)
    assert not hub.same_repository("hf://me/other", pinned)
    assert not hub.same_repository("runs/model", pinned)


def _download(url, home, *addresses, **more):
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), **more}
    script = [sys.executable, "-c", DOWNLOADS, *addresses]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_downloads(tmp_path):
    stand_in = Hub()
    files = {"config.json": b"first", "model.safetensors": b"weights", "pytorch_model.bin": b"x"}
    first = stand_in.add("me/model", files)
    stand_in.add("me/pickled", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    stand_in.add("me/other", {"README.md": b"x"})
    stand_in.add("me/gated", files)
    stand_in.gated.add("me/gated")
    with serve(stand_in):
        answers = _download(
            stand_in.url,
            tmp_path,
            "hf://me/model",
            "hf://me/pickled",
            "hf://me/other",
            "hf://me/gated",
            "hf://me/none",
            "hf://me/model@none",
        )
        assert answers[0] == [["config.json", "model.safetensors"], first, "first"]
        for answer, reason in zip(
            answers[1:],
            (
                "no safetensors",
                "no config.json",
                "accept conditions",
                "no such repository",
                "no revision 'none'",
            ),
            strict=True,
        ):
            assert reason in answer and "\n" not in answer
        assert not any("pytorch_model" in request for request in stand_in.requests)
        second = stand_in.add("me/model", {**files, "config.json": b"second"})
        stand_in.requests.clear()
        moved, pinned = _download(stand_in.url, tmp_path, "hf://me/model", f"hf://me/model@{first}")
        assert (moved[1:], pinned[1:]) == ([second, "second"], [first, "first"])
        # The weights of both commits are the same and are in the cache.
        assert not any(
            request.startswith("GET") and "safetensors" in request for request in stand_in.requests
        )
    # The server is gone.
    cached, unknown = _download(stand_in.url, tmp_path, "hf://me/model", "hf://me/unknown")
    assert cached[1] == second
    assert "cannot be reached and the cache has no copy" in unknown
    offline = _download(
        stand_in.url, tmp_path, "hf://me/model", "hf://me/unknown", HF_HUB_OFFLINE="1"
    )
    assert offline[0][1] == second
    assert "HF_HUB_OFFLINE forbids" in offline[1]


def test_without_the_package_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        hub.download("hf://me/model")


@pytest.fixture
def exported(runs, tmp_path, monkeypatch):
    """The policy `a` as a model of the hub that is in the cache, at a commit; returns the snapshot."""
    snapshot = tmp_path / "snapshots" / "0123abc"
    convert(checkpoint=str(runs["a"]), output=str(snapshot), to="huggingface")
    monkeypatch.setattr(hub, "download", lambda address: str(snapshot))
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    return snapshot


def test_a_source_is_found_again_by_its_commit(exported):
    source = open_source("hf://me/model")
    assert (source.path, source.address) == (str(exported), "hf://me/model@0123abc")
    assert open_source(str(exported)).address == str(exported)


def test_a_model_becomes_a_run_once(exported, runs, capsys):
    opened = opening.open_run("hf://me/model")
    assert "hf://me/model@0123abc" in capsys.readouterr().err
    assert opened.description.feature_lengths == {"inputs": 64, "targets": 16}
    for mine, theirs in zip(*(_leaves(run) for run in (opened, Run(runs["a"]))), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # A folder of the same files is the same model; it is not converted again.
    assert opening.open_run(exported).folder == opened.folder
    assert capsys.readouterr().err == ""
    # Another file is another model.
    settings = json.loads((exported / "jaxalign.json").read_text())
    settings["feature_lengths"]["inputs"] = 32
    (exported / "jaxalign.json").write_text(json.dumps(settings))
    assert opening.open_run(exported).description.feature_lengths["inputs"] == 32


def test_two_processes_may_convert_the_same_model(exported, monkeypatch):
    """The other one is faster: its folder stays, and that of this process goes."""
    original = opening.convert.convert

    def slower(**settings):
        said = original(**settings)
        own = Path(settings["output"])
        shutil.copytree(own, own.with_suffix(""))
        return said

    monkeypatch.setattr(opening.convert, "convert", slower)
    opened = opening.open_run(exported)
    assert [path.name for path in opened.folder.parent.iterdir()] == [opened.folder.name]


def test_a_run_is_opened_as_it_is(runs):
    assert opening.open_run(runs["a"]).folder == Run(runs["a"]).folder


def test_rounds_start_from_a_model_of_the_hub(exported, tmp_path):
    recipe = functools.partial(
        make_recipe,
        output_dir=str(tmp_path / "rounds"),
        prompts=PromptSource(file="prompts.jsonl"),
        training=lambda values: None,
        selector="best_worst",
    )
    for start in ("hf://me/model", str(exported)):
        with pytest.raises(UserError, match=f"START {start}: a dry run downloads and converts no"):
            recipe(start=start, converts=False)
    assert not (tmp_path / "cache").exists()
    of_the_hub = recipe(start="hf://me/model", teacher=str(exported))
    folder = str(opening.open_run(exported).folder)
    assert of_the_hub.paths == {
        "OUTPUT_DIR": str(tmp_path / "rounds"),
        "START": folder,
        "TEACHER": folder,
    }
    assert recipe(start=str(exported), converts=False).start == folder
    # Stages of the address and of the converted folder are the same.
    assert of_the_hub.identities == recipe(start=folder, teacher=folder).identities


def test_a_model_of_the_hub_has_no_reward_network(exported):
    with pytest.raises(UserError, match="reward"):
        get_judge("reward_model:hf://me/model")


def _leaves(run):
    import jax

    return jax.tree.leaves(run.policy().params)
