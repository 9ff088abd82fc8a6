"""Captions of coloured shapes: a run learns them from images, and other processes write and score them."""

import json
import subprocess
import sys

import gin
import numpy as np
import pytest

from jaxalign.cli.main import main
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError
from jaxalign.inference.encoders import encoder_of
from jaxalign.runs.folder import Run
from tests.fixtures import shapes
from tests.fixtures.processes import with_devices

pytestmark = pytest.mark.slow

HELD_OUT = 19  # of the 160, by the digests of their images


def jaxalign(*arguments):
    command = [sys.executable, "-m", "jaxalign", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=with_devices())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    _, captions = shapes.write(folder, count=160)
    gin.clear_config()
    files = (
        "models/tiny",
        "tasks/jsonl_seq2seq",
        "objectives/sft",
        "optimizers/adamw",
        "runs/train",
    )
    settings = {
        "MODEL_DIR": repr(str(folder / "run")),
        "CACHE_DIR": repr(str(folder / "cache")),
        "TRAIN_FILE": repr(str(folder / "data.jsonl")),
        "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 16},
        "VOCAB_SIZE": 384,
        "IMAGE_SIZE": shapes.SIZE,
        "PATCH_SIZE": 4,
        "BATCH_SIZE": 32,
        "TRAIN_STEPS": 110,
        "LEARNING_RATE": 1e-2,
        "INITIAL_CHECKPOINT_PATH": None,
        "DROPOUT_RATE": 0.0,
    }
    command = ["train", *(f"--gin_file={file}.gin" for file in files)]
    assert main([*command, *(f"--gin.{key}={value}" for key, value in settings.items())]) == 0
    gin.clear_config()
    return folder, captions


def test_captions_are_learned_from_the_images(trained):
    """The prompt's text is the same everywhere, so a colour would be right in one of three lines without images."""
    folder, captions = trained
    written = jaxalign(
        "generate", f"--checkpoint={folder / 'run'}", f"--input={folder / 'data.jsonl'}",
        f"--output={folder / 'out.jsonl'}",
    )  # fmt: skip
    assert written.returncode == 0, written.stderr
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    found = [line["responses"][0].partition(" ")[0] for line in lines]
    colours = [caption.partition(" ")[0] for caption in captions]
    assert np.mean(np.array(found) == np.array(colours)) > 0.8
    assert lines[5]["image"] == {"file": "images.npz", "key": "pictures", "row": 5}


def test_a_cache_with_images_is_scored(trained, capsys):
    folder, _ = trained
    assert main(["score", f"--checkpoint={folder / 'run'}", f"--cache_dir={folder / 'cache'}"]) == 0
    cache = TaskCache(str(folder / "cache"))
    (name,) = cache.stored_names("train")
    scores = cache.stored("train", name).values
    assert np.mean(scores) > -6, capsys.readouterr().err


def test_an_evaluation_reads_images(trained, tmp_path):
    """Records with one text and several images are several prompts."""
    folder, captions = trained
    lines = (folder / "data.jsonl").read_text().splitlines()
    (folder / "some.jsonl").write_text("\n".join(lines[:20]))
    command = ["evaluate", f"--checkpoints=a={folder / 'run'}", "--judges=exact_match"]
    for source in (folder / "some.jsonl", folder / "cache"):
        output = tmp_path / source.stem
        assert main([*command, f"--prompts={source}", f"--output_dir={output}"]) == 0
        result = json.loads((output / "evaluation.json").read_text())
        assert result["settings"]["num_prompts"] == (20 if source.suffix else HELD_OUT)
    lines = (tmp_path / "some" / "responses" / "a.jsonl").read_text().splitlines()
    found = [json.loads(line)["responses"][0] for line in lines]
    right = [
        text.split()[0] == caption.split()[0]
        for text, caption in zip(found, captions, strict=False)
    ]
    assert np.mean(right) > 0.8


def test_what_lacks_its_image_or_cannot_read_one_is_refused_in_one_line(trained, tmp_path, capsys):
    folder, _ = trained
    (tmp_path / "in.jsonl").write_text('{"prompt": "What is it?", "image": "no.png"}')
    generate = ["generate", f"--checkpoint={folder / 'run'}", f"--output={tmp_path / 'out.jsonl'}"]
    assert main([*generate, f"--input={tmp_path / 'in.jsonl'}"]) == 2
    error = capsys.readouterr().err
    assert "in.jsonl:1: the image 'no.png' does not exist beside the data" in error
    assert error.count("\n") == 1
    with pytest.raises(UserError, match="reads images, and this command reads only the text of"):
        encoder_of(Run(folder / "run"))
