"""Commands that train several runs get the arguments of each, built anew with the hyperparameters of its round."""

import re
from pathlib import Path

import gin
import pytest

from jaxalign.cli import gin_rebuilding, gin_setup
from jaxalign.cli.commands import COMMANDS, UsageError, read_signature
from jaxalign.cli.flags import parse_flags
from jaxalign.recipes.rounds import make_recipe

RECIPES = Path(__file__).resolve().parents[2] / "gin_configs" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.gin"))
GIVEN = {"START": "s", "PROMPTS": "p", "OUTPUT_DIR": "o", "JUDGE": "length", "LABELLED_FILE": "l"}


def configured(name, *more):
    """The recipe of a gin file, with a tiny model."""
    command = COMMANDS["rounds"]
    signature = read_signature(command)
    files = [f"--gin_file=recipes/{name}.gin", "--gin_file=models/tiny.gin"]
    given = [f"--{macro}={value}" for macro, value in GIVEN.items()]
    flags = parse_flags([*files, *given, "--VOCAB_SIZE=272", *more], signature)
    function = gin_setup.configure(flags, command, signature)
    built = gin_rebuilding.rebuilder(command.selector, command.rebuilt)
    return make_recipe(**{**gin.get_bindings(function), "training": built})


@pytest.fixture(autouse=True)
def _fresh_gin():
    yield
    gin.clear_config()


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds_the_objective_of_every_round(name):
    recipe = configured(name)
    for number in recipe.trained_rounds:
        keywords = recipe.training(recipe.values(number)).keywords
        assert keywords["objective"].policy.vocab_size == 272
        assert keywords["optimizers"]["policy"].schedule(0) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_begins_with_its_command_and_what_to_expect(name):
    text = (RECIPES / f"{name}.gin").read_text()
    header = text.split("\n\n")[0]
    wanted = ("Command:", "Hardware:", "Expect:", f"--gin_file=recipes/{name}.gin", "--START=")
    required = [f"--{macro}=" for macro in re.findall(r"^(\w+) = %gin.REQUIRED", text, re.M)]
    for part in (*wanted, *required, "--OUTPUT_DIR="):
        assert part in header


def test_a_round_has_its_own_hyperparameters_and_leaves_the_configuration_as_it_was():
    recipe = configured("spa")
    before = gin.config_str()
    objectives = [
        recipe.training(recipe.values(number)).keywords["objective"] for number in (0, 1, 2, 3, 4)
    ]
    assert [each.alpha for each in objectives] == [0.0, 0.1, 0.1, 0.1, 0.1]
    assert [each.strength for each in objectives[1:]] == [0.5, 0.25, 0.125, 0.125]
    assert gin.config_str() == before


def test_the_configuration_of_a_round_is_recorded_with_its_values():
    recipe = configured("spa")
    text = recipe.training(recipe.values(2)).keywords["configuration"]()
    assert "STRENGTH = 0.25" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"STRENGHT": 0.5}, "nothing reads the macro STRENGHT.*did you mean STRENGTH"),
        ({"STRENGTH": "high"}, "STRENGTH = 'high'.* takes a number"),
    ],
)
def test_a_wrong_value_of_a_round_is_told(values, message):
    recipe = configured("spa")
    with pytest.raises(UsageError, match=message):
        recipe.training(values)
