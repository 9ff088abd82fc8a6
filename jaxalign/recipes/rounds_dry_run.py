"""Checks a recipe for `jaxalign rounds --dry_run`, and describes its graph. Nothing is compiled or written."""

from __future__ import annotations

from typing import Any

from jaxalign.recipes.round_checks import check_recipe, graph
from jaxalign.recipes.round_graph import stages
from jaxalign.recipes.rounds import make_recipe
from jaxalign.recipes.stages import check_finished, is_finished


def check(**arguments: Any) -> str:
    """Checks the arguments of `rounds.rounds`, and returns a line for each stage, with its counts.

    Raises:
      UserError: a file, run, specification or value is wrong, or OUTPUT_DIR has stages of other settings; the message names the setting.
    """
    recipe = make_recipe(converts=False, **arguments)
    checked = check_recipe(recipe)
    lines = list(graph(recipe, checked))
    found = stages(recipe, checked.prompts, checked.held_out)
    check_finished(recipe.folder, found)
    finished = sum(is_finished(recipe.folder, stage) for stage in found)
    if finished:
        lines.append(f"{finished} of {len(found)} stages are finished in {recipe.folder}")
    return "\n".join(lines)
