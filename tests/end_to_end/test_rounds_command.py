"""`jaxalign rounds` in a process of its own: a first launch in a fresh folder, and the same command again."""

import json
import os
import subprocess
import sys

import pytest

from tests.recipes.conftest import CONFIG, LENGTHS, prompts, start  # noqa: F401 (fixtures)

RECIPE = f"""
from __gin__ import dynamic_registration
from jaxalign.networks import config

include 'models/tiny.gin'
include 'recipes/iterative_dpo.gin'

VOCAB_SIZE = {CONFIG.vocab_size}
config.T5Config:
  emb_dim = {CONFIG.emb_dim}
  head_dim = {CONFIG.head_dim}
  mlp_dim = {CONFIG.mlp_dim}
  num_encoder_layers = 1
  num_decoder_layers = 1
LOGITS_CHUNK_SIZE = None
TASK_FEATURE_LENGTHS = {LENGTHS}
PROMPTS_PER_ROUND = 8
SAMPLE_BATCH_SIZE = 8
BATCH_SIZE = 4
ROUNDS = 1
"""


@pytest.fixture
def launch(start, prompts, tmp_path, repository):  # noqa: F811
    """`launch(*flags)` runs the command in a new folder."""
    (tmp_path / "my.gin").write_text(RECIPE)
    path = f"{repository}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"

    def run(*flags):
        command = [sys.executable, "-m", "jaxalign", "rounds", "--gin_file=my.gin"]
        command += [f"--START={start}", f"--PROMPTS={prompts}", "--JUDGE=length", *flags]
        return subprocess.run(
            [*command, "--OUTPUT_DIR=out", "--MEASURE_COUNT=4"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


def test_a_first_and_a_second_launch(launch, tmp_path):
    first = launch()
    assert first.returncode == 0, first.stderr
    assert "all rounds are finished" in first.stdout
    content = json.loads((tmp_path / "out/rounds.json").read_text())
    assert [entry["round"] for entry in content["rounds"]] == ["start", "1"]
    assert content["rounds"][1]["train loss"] < 0.7
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    again = launch()
    assert again.returncode == 0 and "all rounds are finished" in again.stdout
    assert written == {path: path.stat().st_mtime_ns for path in written}
    refused = launch("--NUM_SAMPLES=3")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "round1, sample was finished with sampler" in refused.stderr
