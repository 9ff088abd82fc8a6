"""`jaxalign convert` given again, killed, run twice at once, or fed with a damaged run."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.errors import UserError
from jaxalign.interop.checkpoint_sources import FORMATS, HUGGING_FACE, RUN, T5X, open_source
from jaxalign.interop.convert import convert
from jaxalign.interop.storage import files
from jaxalign.networks.config import T5Config
from jaxalign.runs import manifests
from jaxalign.runs.folder import Run

CONFIG = T5Config(
    vocab_size=320,
    emb_dim=8,
    num_heads=2,
    head_dim=3,
    mlp_dim=12,
    num_encoder_layers=2,
    num_decoder_layers=3,
)


def content(folder):
    return {name: Path(folder, name).read_bytes() for name in files(str(folder))}


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_command_again_changes_nothing(values, make_checkpoint, tmp_path, to):
    given = {"vocabulary": "bytes"} if to in (RUN, HUGGING_FACE) else {}
    command = {
        "checkpoint": make_checkpoint(T5X, values(CONFIG), CONFIG),
        "output": str(tmp_path / "out"),
        "to": to,
        **given,
    }
    first = convert(**command)
    before = content(first["output"])
    again = convert(**command)
    assert "was there already" in again["message"]
    assert content(first["output"]) == before


def test_a_vocabulary_and_lengths_that_were_left_out_are_added_later(
    values, make_checkpoint, tmp_path
):
    model = tmp_path / "my.model"
    train_sentencepiece(["a b c d e f g h", "b c d e"] * 5, str(model), vocab_size=20)
    folder, output = make_checkpoint(T5X, values(CONFIG), CONFIG), str(tmp_path / "out")
    said = convert(checkpoint=folder, output=output)["message"]
    assert "not recorded: --vocabulary, --max_input_length, --max_target_length" in said
    with pytest.raises(UserError, match="converted without a vocabulary"):
        _ = Run(output).vocabulary
    lengths = {"max_input_length": 12, "max_target_length": 8}
    said = convert(checkpoint=folder, output=output, vocabulary=str(model), **lengths)["message"]
    assert "added: vocabulary, length of inputs, length of targets" in said
    assert "not recorded" not in said
    run = Run(output).policy()
    assert run.vocabulary.encode("a b") and run.length("inputs") == 12
    # What is recorded now is kept.
    assert "not recorded" not in convert(checkpoint=folder, output=output)["message"]
    with pytest.raises(UserError, match="exists already, with the SentencePiece model"):
        convert(checkpoint=folder, output=output, vocabulary="bytes")
    with pytest.raises(UserError, match="with 12 tokens of inputs and not 13"):
        convert(checkpoint=folder, output=output, max_input_length=13)


def test_what_a_killed_process_left_is_cleared_and_what_one_is_writing_is_not(
    values, make_checkpoint, tmp_path
):
    folder = make_checkpoint(T5X, values(CONFIG), CONFIG)
    for name in (".out.converting", ".other.converting"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "half").write_bytes(b"x")
    convert(checkpoint=folder, output=str(tmp_path / "out"), to=HUGGING_FACE)
    assert not list(tmp_path.glob(".*.converting"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    busy = tmp_path / ".busy.converting"
    busy.mkdir()
    (busy / "half").write_bytes(b"x")
    descriptor = os.open(busy, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        convert(checkpoint=folder, output=str(tmp_path / "second"), to=HUGGING_FACE)
        assert (busy / "half").exists()
        with pytest.raises(UserError, match="another process is writing"):
            convert(checkpoint=folder, output=str(tmp_path / "busy"), to=HUGGING_FACE)
    finally:
        os.close(descriptor)
    convert(checkpoint=folder, output=str(tmp_path / "busy"), to=HUGGING_FACE)


def test_an_empty_folder_is_a_place_to_write_to(values, make_checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    convert(
        checkpoint=make_checkpoint(T5X, values(CONFIG), CONFIG),
        output=str(tmp_path / "out"),
        to=HUGGING_FACE,
    )
    assert open_source(tmp_path / "out").config is not None


def test_a_converted_run_has_a_manifest_and_a_damaged_one_is_not_converted(
    values, make_checkpoint, tmp_path
):
    run = Path(make_checkpoint(RUN, values(CONFIG), CONFIG))
    checkpoint = run / "checkpoints" / "7"
    assert (checkpoint / manifests.MANIFEST).exists()
    assert manifests.find_damage(checkpoint, "params") is None
    files = [path for path in (checkpoint / "params").rglob("*") if path.is_file()]
    for path in files:
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]) if kept else b"x")
        with pytest.raises(UserError, match="is damaged"):
            convert(checkpoint=str(run), output=str(tmp_path / "out"), to=T5X)
        path.write_bytes(kept)
    convert(checkpoint=str(run), output=str(tmp_path / "out"), to=T5X)


def test_a_checkpoint_in_another_runs_place_is_not_converted(values, make_checkpoint, tmp_path):
    run = Path(make_checkpoint(RUN, values(CONFIG), CONFIG))
    manifests.write_manifest(run / "checkpoints" / "7", step=7, run_id="another")
    with pytest.raises(UserError, match="a checkpoint of the run another, and this folder is of"):
        convert(checkpoint=str(run), output=str(tmp_path / "out"), to=T5X)


def test_a_vocabulary_outside_of_a_run_is_not_followed(values, make_checkpoint, tmp_path):
    run = Path(make_checkpoint(RUN, values(CONFIG), CONFIG))
    secret = tmp_path / "secret.model"
    train_sentencepiece(["a b c d e f g h", "b c d e"] * 5, str(secret), vocab_size=20)
    (run / "link.model").symlink_to(secret)
    file = run / "networks.json"
    described = json.loads(file.read_text())
    for path in (str(secret), "../secret.model", "link.model", 7):
        spec = {"kind": "sentencepiece", "path": path, "extra_ids": 0}
        file.write_text(json.dumps(described | {"vocabulary": spec}))
        with pytest.raises(
            UserError, match=r"must be the name of a file in the run folder|it is not followed"
        ):
            convert(checkpoint=str(run), output=str(tmp_path / "out"), to=HUGGING_FACE)
    assert not (tmp_path / "out").exists()
