"""Checks a recipe for `jaxalign rounds --dry_run`, and prints its graph. Nothing is compiled or written."""

from __future__ import annotations

from typing import Any

from jaxalign.recipes.round_checks import check_recipe, graph
from jaxalign.recipes.rounds import make_recipe


def check(**arguments: Any) -> None:
    """Checks the arguments of `rounds.rounds`, and prints the stages with their counts.

    Raises:
      UserError: a file, run, specification or value is wrong; the message names the setting.
    """
    recipe = make_recipe(**arguments)
    for line in graph(recipe, check_recipe(recipe)):
        print(line)
    print()
