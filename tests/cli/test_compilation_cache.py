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
    with compilation_cache.kept(environment):
        folder = environment.get(compilation_cache.FOLDER)
    assert environment == dict(given)
    return folder


@pytest.fixture
def folder(cache):
    return folder_of()


def write(*path, size=10, age=0):
    file = os.path.join(*path)
    with open(file, "w") as opened:
        opened.write("x" * size)
    os.utime(file, (1000 - age, 1000 - age))


def test_nobody_else_can_write_the_folders(cache):
    before = os.umask(0o002)
    try:
        folder = folder_of()
    finally:
        os.umask(before)
    assert os.path.dirname(folder) == str(cache)
    for each in (folder, cache):
        assert os.stat(each).st_mode & 0o777 == 0o700
        os.chmod(each, 0o770)
        assert folder_of() is None
        os.chmod(each, 0o700)
    os.chmod(cache.parent, 0o777)
    assert folder_of() is None


def test_a_link_is_not_followed(cache, folder, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    write(mine, "thesis-cache")
    os.rmdir(folder)
    os.symlink(mine, folder)
    monkeypatch.setattr(compilation_cache, "_LARGEST_BYTES", 0)
    assert folder_of() is None
    assert (mine / "thesis-cache").exists()


def test_a_folder_of_the_user_stays(cache):
    assert folder_of({compilation_cache.FOLDER: "/mine"}) == "/mine" and not cache.exists()


def test_nothing_is_kept_where_nothing_can_be_written(cache):
    cache.parent.write_text("a file")
    assert folder_of() is None


def test_the_oldest_programs_of_all_processors_are_removed_and_nothing_else(
    cache, folder, monkeypatch
):
    other = cache / "another_processor"
    tuning = os.path.join(folder, "xla_gpu_per_fusion_autotune_cache_dir")
    for made in (other, tuning):
        os.mkdir(made)
    write(folder, "newest-cache")
    write(folder, "middle-cache", age=1)
    write(other, "oldest-cache", age=2)
    write(tuning, "tuned", age=3)
    monkeypatch.setattr(compilation_cache, "_LARGEST_BYTES", 20)
    assert folder_of() == folder
    assert os.listdir(other) == [] and os.listdir(tuning) == ["tuned"]
    assert {"middle-cache", "newest-cache"} < set(os.listdir(folder))


@pytest.mark.slow
def test_a_second_launch_compiles_nothing_and_damaged_programs_are_compiled_again(cache, tmp_path):
    def train():
        files = ("models/tiny", "tasks/synthetic_seq2seq", "objectives/sft", "optimizers/adamw", "runs/train")  # fmt: skip
        command = [sys.executable, "-m", "jaxalign", "train"]
        command += [f"--gin_file={file}.gin" for file in files]
        command += ["--MODEL_DIR=run", "--TRAIN_STEPS=2", "--BATCH_SIZE=4", "--VOCAB_SIZE=384"]
        environment = with_devices(
            1,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            # JAX then logs what it reads and what it does not find.
            JAX_DEBUG_LOG_MODULES="jax._src.compiler",
        )
        environment.pop(compilation_cache.FOLDER, None)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        losses = [line.split('"loss"')[1].split(",")[0] for line in lines]
        return losses, done.stderr.lower().count("cache miss")

    first, missed = train()
    assert missed > 5
    assert train() == (first, 0)
    (folder,) = cache.iterdir()
    for file in folder.glob("*-cache"):
        file.write_bytes(file.read_bytes()[:100])
    damaged, _ = train()
    assert damaged == first
