"""A run starts from a checkpoint of any format: at the first launch, at the second, and again after dying before its first checkpoint.

Every launch is a process of its own: what one process has traced hides what the next would fail on.
"""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.interop import parameters, t5x
from jaxalign.interop.arrays import from_numpy
from jaxalign.interop.convert import convert
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.parallel import partitioning
from jaxalign.runs.checkpoints import restore_params

SCRIPT = Path(__file__).with_name("start_from.py")
FORMATS = ("jaxalign", "t5x", "t5x_orbax", "huggingface")
METHODS = ("sft", "dro_v", "kto")
CONFIG = T5Config(
    vocab_size=272,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("relu",),
)


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """One policy in every format."""
    root = tmp_path_factory.mktemp("starts")
    generator = np.random.default_rng(0)
    values = {
        name: from_numpy((0.2 * generator.normal(size=shape)).astype(np.float32))
        for name, shape in parameters.shapes(CONFIG).items()
    }
    first = root / "t5x" / "checkpoint_3"
    first.mkdir(parents=True)
    t5x.write_legacy(str(first), values, 3)
    for to in FORMATS:
        if to != "t5x":
            given = {"vocabulary": "bytes"} if to in ("jaxalign", "huggingface") else {}
            convert(checkpoint=str(first), output=str(root / to), to=to, **given)
    return root


@pytest.fixture
def launch(feedback, tmp_path, starts, repository):
    """`launch(method, name, steps)` waits for a run from the checkpoint of that format, and returns its output."""

    def wait(method, name, steps, *die):
        arguments = [method, feedback, tmp_path / "cache", tmp_path / f"{method}-{name}", steps]
        command = [sys.executable, SCRIPT, *arguments, starts / name, *die]
        path = f"{repository}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        finished = subprocess.run(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            timeout=600,
        )
        assert finished.returncode == (-signal.SIGKILL if die else 0), finished.stdout[-3000:]
        return finished.stdout

    return wait


def test_shapes_are_told_while_a_mesh_is_active():
    config = CONFIG.replace(mlp_dim=24)  # of no other test, so nothing has traced it
    with partitioning.set_mesh(partitioning.make_mesh()):
        shapes = parameters.shapes(config)
        policy, value = Policy(config).abstract_params(), ValueNetwork(config).abstract_params()
    assert shapes["encoder.layers_0.mlp.wo.kernel"] == (24, 8)
    jax.tree.map(lambda leaf: leaf.shape, (policy, value))


def test_sft_starts_from_t5x(launch, tmp_path):
    assert "finished at step 1" in launch("sft", "t5x", 1)
    assert restore_params(tmp_path / "sft-t5x", "policy", step=1)


def test_dro_v_from_hugging_face_dies_before_its_first_checkpoint_and_begins_again(
    launch, tmp_path
):
    launch("dro_v", "huggingface", 1, "die")
    stored = list((tmp_path / "cache").glob("stored/**/*.npy"))
    assert stored, "the reference's log-probabilities are there already"
    assert "finished at step 1" in launch("dro_v", "huggingface", 1)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name"), list(itertools.product(METHODS, FORMATS)))
def test_every_method_starts_from_every_format(launch, method, name):
    launch(method, name, 1, "die")
    assert "finished at step 1" in launch(method, name, 1)
    # The second launch goes on from the first one's checkpoint.
    assert "finished at step 2" in launch(method, name, 2)
