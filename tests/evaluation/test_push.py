"""The model card of a run, and `jaxalign push` into a folder and a stand-in for the hub."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from jaxalign.errors import UserError
from jaxalign.evaluation.model_card import _WHERE
from jaxalign.evaluation.push import push
from jaxalign.interop.checkpoint_sources import open_source
from jaxalign.runs.description import read_description, write_description
from tests.fixtures.hub import Hub, serve


def _card(folder):
    text = (folder / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_says_what_the_run_records(runs, tmp_path):
    folder = shutil.copytree(runs["a"], tmp_path / "run")
    content = dict(read_description(folder).content)
    content |= {
        "objective": "dro_v",
        "hyperparameters": {
            "temperature": 0.7,
            "nested": {"a": 1},
            "teacher_path": str(tmp_path / "runs" / "teacher"),
        },
        "task": str(tmp_path / "secret" / "task"),
        "initial_checkpoint": {"run_id": "x", "step": 0, "path": "hf://google/t5@abc"},
    }
    write_description(folder, content)
    summary = {
        "step": 3,
        "objective": "dro_v",
        "evaluation": {"validation/loss": 0.25},
        "data": {"num_examples": {"train": 1200}, "rejected": {"train": {"empty": 4}}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.gin").write_text(f"LEARNING_RATE = 0.001\nCACHE_DIR = '{tmp_path}/c'\n")
    push(checkpoint=str(folder), to=str(tmp_path / "out"), license="mit", intended_use="For tests.")
    header, body = _card(tmp_path / "out")
    assert header["license"] == "mit"
    assert header["base_model"] == "google/t5"
    assert "dro_v" in header["tags"]
    for said in ("For tests.", "1,200 train", "4 empty (train)", "`0.7`", "`0.001`", "0.250"):
        assert said in body
    assert "`teacher`" in body
    assert str(tmp_path) not in body
    assert open_source(str(tmp_path / "out")).params.keys()


def test_tables_of_a_card_name_files_without_their_folders():
    table = "| policy | prompts | KL |\n|---|---|---:|\n| a/b=1 | /home/me/data/x.jsonl | 0.1 |\n| c | ~/y.jsonl | 1 / 2 |"
    found = _WHERE.sub(r"\1", table)
    assert "| x.jsonl |" in found and "| y.jsonl |" in found
    assert "/home" not in found and "~" not in found


def test_a_push_to_a_revision_is_refused(runs):
    with pytest.raises(UserError, match="leave @main out"):
        push(checkpoint=str(runs["a"]), to="hf://me/model@main")


def test_an_existing_model_is_kept(runs, tmp_path):
    push(checkpoint=str(runs["a"]), to=str(tmp_path / "out"))
    with pytest.raises(UserError, match="exists already"):
        push(checkpoint=str(runs["b"]), to=str(tmp_path / "out"))


def test_a_repository_gets_the_files_and_the_token_stays_here(runs, tmp_path):
    pytest.importorskip("huggingface_hub")
    stand_in = Hub()
    # An earlier push of shards, and a file that is no part of a model.
    old = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}"}
    stand_in.add("me/model", {**old, "logo.png": b"picture"})
    command = [sys.executable, "-m", "jaxalign", "push", f"--checkpoint={runs['a']}"]
    with serve(stand_in):

        def run(token, *more):
            environment = {"HF_ENDPOINT": stand_in.url, "HF_HOME": str(tmp_path), "HF_TOKEN": token}
            return subprocess.run(
                [*command, *more],
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                timeout=300,
            )

        refused, done = (
            run("wrong-token", "--to=hf://me/model"),
            run(stand_in.token, "--to=hf://me/model"),
        )
        public = run(stand_in.token, "--to=hf://me/model", "--private")
    assert (refused.returncode, done.returncode) == (2, 0), refused.stderr + done.stderr
    assert refused.stderr.count("\n") == 1 and "HF_TOKEN" in refused.stderr
    assert "wrong-token" not in refused.stderr + refused.stdout
    assert public.returncode == 2 and "exists and is public" in public.stderr
    files = stand_in.repositories["me/model"][-1]
    assert {"README.md", "config.json", "model.safetensors", "logo.png"} <= files.keys()
    assert not old.keys() & files.keys()
    assert stand_in.token.encode() not in b"".join(files.values())
    assert len(stand_in.repositories["me/model"]) == 2
