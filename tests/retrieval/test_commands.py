"""index -> train -> retrieve on generated pictures, in one process of its own; and what the commands refuse in one line."""

import json
import subprocess
import sys

import pytest

from jaxalign.cli.main import main
from jaxalign.evaluation.retrieve import describe
from jaxalign.evaluation.statistics import Estimate
from jaxalign.retrieval.coloured_shapes import Shape, captions, draw, write_shapes
from jaxalign.retrieval.index import seen_queries
from tests.fixtures.processes import with_devices

SCRIPT = """
import sys, json
from jaxalign.cli.main import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    if code:
        sys.exit(code)
"""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder with pictures, an index, a run that trained on it, and found.jsonl; and what the commands printed."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(str(folder), num_items=20, train_captions=3, test_captions=1, pixels=8)
    index = folder / "index"
    commands = [
        ["vocabulary", f"--task_or_file={folder}/train.jsonl", "--fields=prompt=query,response=item",
         f"--output={folder}/spm.model", "--vocab_size=100"],
        ["index", f"--items={folder}/items.jsonl", f"--output={index}", f"--vocabulary={folder}/spm.model",
         "--features=pictures:size=8", "--components=8", f"--queries={folder}/train.jsonl",
         f"--validation_queries={folder}/test.jsonl", "--coarse=4", "--levels=1", "--codes=4"],
        ["train", "--gin_file=models/tiny.gin", "--gin_file=tasks/jsonl_seq2seq.gin", "--gin_file=objectives/sft.gin",
         "--gin_file=optimizers/adamw.gin", "--gin_file=runs/train.gin", f"--MODEL_DIR={folder}/run",
         f"--TRAIN_FILE={index}/train.jsonl", f"--VALIDATION_FILE={index}/validation.jsonl",
         f"--VOCABULARY={index}/vocabulary.model", f"--CACHE_DIR={folder}/cache", "--VOCAB_SIZE=128",
         "--TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 8}", "--BATCH_SIZE=8", "--TRAIN_STEPS=2",
         "--EVAL_PERIOD=0"],
        ["retrieve", f"--checkpoint={folder}/run", f"--index={index}", f"--input={folder}/test.jsonl",
         f"--output={folder}/found.jsonl", "--num_beams=4", "--top=3", "--two_tower_steps=2"],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=300,
        env=with_devices(1),
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_ranked_items_stand_beside_those_of_the_baselines(shapes):
    folder, printed = shapes
    lines = [json.loads(line) for line in (folder / "found.jsonl").read_text().splitlines()]
    known = {json.loads(line)["item"] for line in (folder / "items.jsonl").read_text().splitlines()}
    assert len(lines) == 20
    for line in lines:
        assert len(set(line["items"])) == 3 and set(line["items"]) <= known
        assert len(line["identifiers"]) == len(line["log_probs"]) == 3
        assert line["log_probs"] == sorted(line["log_probs"], reverse=True)
        assert set(line["tf_idf"]) | set(line["two_tower"]) <= known
    measured = json.loads((folder / "found.jsonl.metrics.json").read_text())
    assert measured["validity"] == 1
    assert set(measured["measures"]) == {"generative", "tf_idf", "two_tower"}
    # Captions share words with those of training: the lexical index finds some of them at once.
    assert measured["measures"]["tf_idf"]["R@1"]["mean"] > 0.2
    for word in ("R@1", "MRR", "cluster@1", "generative", "tf_idf", "two_tower"):
        assert word in printed


def error(capsys, *arguments):
    """Runs a command that must fail with one line, and returns the line."""
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def retrieving(folder, **changes):
    flags = {
        "checkpoint": f"{folder}/run",
        "index": f"{folder}/index",
        "input": f"{folder}/test.jsonl",
    }
    flags |= {"output": f"{folder}/other.jsonl", "two_tower_steps": "0"}
    return ["retrieve", *(f"--{name}={value}" for name, value in (flags | changes).items())]


def test_retrieve_refuses_what_does_not_fit(shapes, capsys, tmp_path):
    folder, _ = shapes
    shuffled = tmp_path / "shuffled"
    given = [f"--items={folder}/items.jsonl", f"--vocabulary={folder}/spm.model"]
    given += [
        "--features=pictures:size=8",
        "--components=8",
        "--coarse=4",
        "--levels=1",
        "--codes=4",
    ]
    assert main(["index", *given, f"--output={shuffled}", "--shuffle=true"]) == 0
    capsys.readouterr()
    assert "was trained with" in error(capsys, *retrieving(folder, index=shuffled))
    assert "exists already" in error(capsys, *retrieving(folder, output=f"{folder}/found.jsonl"))
    assert "is no index" in error(capsys, *retrieving(folder, index=tmp_path))
    own = {"output": f"{folder}/test.jsonl", "overwrite": "true"}
    assert "--output is the input" in error(capsys, *retrieving(folder, **own))
    assert "is a folder" in error(capsys, *retrieving(folder, output=folder, overwrite="true"))
    assert "at most as many items as beams" in error(capsys, *retrieving(folder, num_beams="2"))
    queries = tmp_path / "queries.jsonl"
    for line, message in (
        ({"query": " "}, ":1: the query is empty"),
        ({"query": "a ring", "item": "moon"}, "is not in the index"),
        ({"query": "a <c1> ring"}, "holds a token of an identifier"),
        ({"query": "\u200b"}, "is empty to the vocabulary"),
    ):
        queries.write_text(json.dumps(line) + "\n")
        assert message in error(capsys, *retrieving(folder, input=queries))
    file = {"output": f"{folder}/test.jsonl/found.jsonl"}
    assert "--output's folder " in error(capsys, *retrieving(folder, **file))
    queries.write_text("")
    assert "holds no queries" in error(capsys, *retrieving(folder, input=queries))


def test_cut_queries_and_a_missing_start_are_told_before_the_search(shapes, capsys, monkeypatch):
    monkeypatch.setattr("jaxalign.evaluation.retrieve.search", None)
    flags = {"two_tower_start": "none", "two_tower_steps": "1", "max_input_length": "2"}
    assert main(retrieving(shapes[0], **flags)) == 2
    cut, line = capsys.readouterr().err.strip().splitlines()
    assert "20 of 20 prompts were cut" in cut and "no checkpoint under" in line


def test_queries_that_were_trained_on_are_told():
    training = [{"prompt": "a Red ring"}, {"prompt": "a disc"}]
    assert seen_queries(["a red ring", "the red ring", "A disc"], training) == 2
    found = {"generative": {"R@1": Estimate(1.0, 1.0, 1.0, 3)}}
    assert "warning: 2 of 3 queries are training queries" in describe(found, 3, 1.0, "x", 2)
    assert "warning" not in describe(found, 3, 1.0, "x", 0)


def test_index_refuses_a_picture_that_is_none(shapes, capsys, tmp_path):
    folder, _ = shapes
    (tmp_path / "x.png").write_text("no picture")
    (tmp_path / "items.jsonl").write_text('{"item": "x", "image": "x.png"}\n')
    flags = [f"--items={tmp_path}/items.jsonl", f"--vocabulary={folder}/spm.model"]
    line = error(capsys, "index", *flags, "--features=pictures", f"--output={tmp_path}/i")
    assert "item 'x': the image 'x.png' is none (PNG, JPEG" in line


def test_shapes_differ_and_captions_name_them():
    one = Shape("red", "ring", "small", "left")
    assert len(set(captions(one))) == len(captions(one)) == 24
    assert all("red" in text and "ring" in text for text in captions(one))
    pixels = draw(one, 32)
    assert (pixels != 255).any()
    for other in (one._replace(colour="blue"), one._replace(shape="circle"),
                  one._replace(size="large"), one._replace(place="right")):  # fmt: skip
        assert (draw(other, 32) != pixels).any()
