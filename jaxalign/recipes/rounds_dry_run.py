"""Checks a recipe for `jaxalign rounds --dry_run`, and describes its graph. Nothing is compiled or written."""

from __future__ import annotations

from typing import Any

from jaxalign.recipes.round_checks import check_recipe, graph
from jaxalign.recipes.rounds import make_recipe


def check(**arguments: Any) -> str:
    """Checks the arguments of `rounds.rounds`, and returns a line for each stage, with its counts.

    Raises:
      UserError: a file, run, specification or value is wrong; the message names the setting.
    """
    recipe = make_recipe(**arguments)
    return "\n".join(graph(recipe, check_recipe(recipe)))
