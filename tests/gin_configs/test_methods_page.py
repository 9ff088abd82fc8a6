"""docs/methods.md has a row for every objective's gin file and no other rows, and a run records its gin file's name."""

import re

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.runs.recorded_hyperparameters import hyperparameters

SHAPE_ONLY = T5Config(
    vocab_size=384, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8,
    num_encoder_layers=1, num_decoder_layers=1, mlp_activations=("relu",),
)  # fmt: skip
# Values that some files require.
MACROS = {"VALUE_TOKEN": 300, "NUM_FEATURES": 3}


def test_every_gin_file_has_a_row_and_every_row_a_gin_file(repository):
    page = (repository / "docs" / "methods.md").read_text()
    named = []
    for line in page.splitlines():
        if line.startswith("| `"):
            named += re.findall(r"`(\w+)`", line.split("|")[1])
    files = [path.stem for path in (repository / "gin_configs" / "objectives").glob("*.gin")]
    assert sorted(named) == sorted(files)


def base_files(repository):
    """Returns the files of objectives without includes; the variants of a method share its name."""
    folder = repository / "gin_configs" / "objectives"
    return {
        path.stem: path.read_text()
        for path in sorted(folder.glob("*.gin"))
        if "include 'objectives/" not in path.read_text()
    }


def test_an_objective_has_the_name_of_its_gin_file(repository):
    files = base_files(repository)
    assert len(files) > 40
    for stem, text in files.items():
        macros = {key: value for key, value in MACROS.items() if key in text}
        objective = objective_from_gin([stem], macros, policy=Policy(SHAPE_ONLY))
        assert objective.name == stem


def test_bindings_of_a_loss_are_among_the_hyperparameters():
    for stem, name in (
        ("dpo", "beta"),
        ("rebel", "eta"),
        ("gold", "horizon"),
        ("dro_v", "temperature"),
    ):
        objective = objective_from_gin([stem], {}, policy=Policy(SHAPE_ONLY))
        assert isinstance(hyperparameters(objective)[name], (int, float))
    objective = objective_from_gin(["dpo"], {"BETA": 0.7}, policy=Policy(SHAPE_ONLY))
    assert hyperparameters(objective)["beta"] == 0.7
