"""A feedback file, and runs of tiny_run.py in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("tiny_run.py")


@pytest.fixture(scope="session")
def feedback(tmp_path_factory):
    """Sixty triplets of short texts."""
    path = tmp_path_factory.mktemp("data") / "feedback.jsonl"
    records = [
        {
            "prompt": f"say {i % 20}",
            "response": f"{i % 20} " + "x" * (i % 7),
            "feedback": i % 3 - 1.0,
        }
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def start_run(feedback, repository):
    """`start_run(folder, steps, kill_at=0, *initial_checkpoint)` starts a process; runs share one cache."""

    def start(folder, steps, kill_at=0, *initial_checkpoint):
        cache = feedback.parent / "cache"
        command = [sys.executable, SCRIPT, feedback, cache, folder, steps, kill_at]
        command += initial_checkpoint
        path = f"{repository}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        return subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    return start
