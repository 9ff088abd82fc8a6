"""Completion of the command line in shells."""

import os
import shutil
import subprocess
import sys

import pytest

from jaxalign.cli.commands import COMMANDS, UsageError
from jaxalign.cli.completion import candidates, script


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("jaxalign ", {"train", "push", "completion"}),
        ("jaxalign tr", {"train"}),
        ("jaxalign generate --num_", {"--num_samples", "--num_beams", "--num_processes"}),
        ("jaxalign train --TRAIN_S", {"--TRAIN_STEPS="}),
        ("jaxalign train --gin_file=objectives/dro_", {"--gin_file=objectives/dro_v.gin"}),
        ("jaxalign train --gin_file objectives/kt", {"objectives/kto.gin"}),
        ("jaxalign completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_candidates(line, expected):
    found = candidates(line)
    assert expected <= set(found)
    last = "" if line.endswith(" ") else line.split()[-1]
    assert all(each.startswith(last) for each in found)


@pytest.mark.parametrize(
    "line", ["", "jaxalign", "jaxalign nothing --", "jaxalign train --MODEL_DIR=r"]
)
def test_where_there_is_nothing_to_offer(line):
    assert candidates(line) == []


def test_files_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").touch()
    (tmp_path / "mine.txt").touch()
    (tmp_path / "minor").mkdir()
    assert candidates("jaxalign train --gin_file=min") == [
        "--gin_file=mine.gin",
        "--gin_file=minor/",
    ]


def test_every_command_completes_its_flags():
    for name in COMMANDS:
        assert "--help" in candidates(f"jaxalign {name} --h")


def test_an_unknown_shell_is_told_what_there_is():
    with pytest.raises(UsageError, match="bash, zsh, fish"):
        script(["tcsh"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path):
    """The script in a real bash: what a line becomes, with '=' as an end of a word."""
    program = tmp_path / "jaxalign"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m jaxalign "$@"\n')
    program.chmod(0o755)
    test = """
eval "$(jaxalign completion bash)"
complete_line() {
    COMP_LINE=$1 COMP_POINT=${#1}
    _jaxalign 2>/dev/null
    echo "${COMPREPLY[@]}"
}
complete_line 'jaxalign retr'
complete_line 'jaxalign train --gin_file=objectives/ipo'
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", test],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["retrieve", "objectives/ipo.gin"], done.stderr
