"""Two processes do not write one output."""

import subprocess
import sys

import pytest

from jaxalign.errors import UserError
from jaxalign.inference.generate import generate

HOLDER = """
import sys, time
from pathlib import Path
from jaxalign.locks import Lock
lock = Lock(Path(sys.argv[1]), "x")
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_one_is_told_and_nothing_is_written(fake_runs, write_lines, tmp_path):
    prompts = write_lines("prompts.jsonl", [{"prompt": f"say {i}"} for i in range(6)])
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".out.jsonl.lock")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"being written by process {other.pid} on"):
            generate("run3", prompts, str(tmp_path / "out.jsonl"))
        assert not (tmp_path / "out.jsonl").exists()
    finally:
        other.kill()
        other.wait()
    generate("run3", prompts, str(tmp_path / "out.jsonl"))
    assert not (tmp_path / ".out.jsonl.lock").exists()
