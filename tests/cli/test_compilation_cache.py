"""Compiled programs in the user's cache: whose folder it is, what is removed, and that a second launch compiles nothing."""

import os
import shutil
import subprocess
import sys

import pytest

from jaxalign.cli import compilation_cache
from tests.fixtures.processes import with_devices


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


def folder_of(given=()):
    environment = dict(given)
    compilation_cache.use(environment)
    return environment.get(compilation_cache.FOLDER)


def test_nobody_else_can_write_the_folder(cache):
    folder = folder_of()
    assert os.path.dirname(folder) == str(cache)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    os.chmod(folder, 0o770)
    assert folder_of() is None


def test_a_folder_of_the_user_stays(cache):
    given = {compilation_cache.FOLDER: "/mine"}
    assert folder_of(given) == "/mine" and not cache.exists()


def test_nothing_is_kept_where_nothing_can_be_written(cache):
    cache.parent.write_text("a file")
    assert folder_of() is None


def test_the_oldest_programs_are_removed(cache, monkeypatch):
    folder = folder_of()
    for age, name in enumerate(("newest", "middle", "oldest")):
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            file.write("x" * 10)
        os.utime(path, (1000 - age, 1000 - age))
    monkeypatch.setattr(compilation_cache, "_LARGEST_BYTES", 20)
    assert folder_of() == folder
    assert sorted(os.listdir(folder)) == ["middle", "newest"]


@pytest.mark.slow
def test_a_second_launch_compiles_nothing_and_damaged_programs_are_compiled_again(cache, tmp_path):
    def train(name):
        files = ("models/tiny", "tasks/synthetic_seq2seq", "objectives/sft", "optimizers/adamw", "runs/train")  # fmt: skip
        command = [sys.executable, "-m", "jaxalign", "train"]
        command += [f"--gin_file={file}.gin" for file in files]
        command += [f"--MODEL_DIR={name}", "--TRAIN_STEPS=2", "--BATCH_SIZE=4", "--VOCAB_SIZE=384"]
        environment = with_devices(1, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
        environment.pop(compilation_cache.FOLDER, None)
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        (folder,) = cache.iterdir()
        programs = {file.name: file.read_bytes() for file in folder.iterdir()}
        return (tmp_path / name / "metrics.jsonl").read_text(), programs

    first, programs = train("first")
    losses = [line.split('"loss"')[1].split(",")[0] for line in first.splitlines()]
    assert programs
    shutil.rmtree(tmp_path / "first")
    again, same = train("first")
    assert same == programs
    (folder,) = cache.iterdir()
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    damaged, _ = train("third")
    for text in (again, damaged):
        assert [line.split('"loss"')[1].split(",")[0] for line in text.splitlines()] == losses
