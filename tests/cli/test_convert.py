"""`jaxalign convert` on the command line: what it says, and what it takes from gin."""

import numpy as np
import pytest

from jaxalign.cli.main import main
from jaxalign.interop import parameters, t5x
from jaxalign.interop.arrays import from_numpy
from jaxalign.networks.config import T5Config

TINY = T5Config(
    vocab_size=128,
    emb_dim=8,
    num_heads=4,
    head_dim=3,
    mlp_dim=16,
    num_encoder_layers=2,
    num_decoder_layers=2,
)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "t5x" / "checkpoint_5"
    folder.mkdir(parents=True)
    shapes = parameters.shapes(TINY)
    t5x.write_legacy(
        str(folder), {name: from_numpy(np.ones(s, np.float32)) for name, s in shapes.items()}, 5
    )
    return str(folder.parent)


def test_says_where_how_much_and_what_it_assumed(checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [f"--checkpoint={checkpoint}", f"--output={output}", "--to=huggingface"]
    assert main(["convert", *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"{output} holds " in printed
    assert "step 5" in printed
    assert "assumed, because parameters do not say it: activations gelu-linear" in printed
    assert main(["convert", *arguments]) == 0
    assert "was there already, with the same parameters" in capsys.readouterr().out
    assert main(["convert", *arguments, "--dtype=bfloat16"]) == 2
    assert capsys.readouterr().err == f"jaxalign: {output} exists already; choose another output\n"


def test_a_model_file_is_what_the_checkpoint_is_checked_against(checkpoint, tmp_path, capsys):
    arguments = [
        "convert",
        "--gin_file=models/t5_1_1_tiny.gin",
        f"--checkpoint={checkpoint}",
        f"--output={tmp_path / 'out'}",
    ]
    assert main(arguments) == 2
    assert (
        "logits_dense.kernel has shape (8, 128), the model expects (8, 32128)"
        in capsys.readouterr().err
    )
    assert main([*arguments, "--gin.VOCAB_SIZE=128"]) == 0
    assert "assumed" not in capsys.readouterr().out
    assert (tmp_path / "out" / "networks.json").exists()


def test_help_names_the_formats(capsys):
    assert main(["convert", "--help"]) == 0
    assert "t5x_orbax" in capsys.readouterr().out
