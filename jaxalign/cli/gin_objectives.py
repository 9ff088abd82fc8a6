"""Builds objectives from the gin files that users train with, for programs that call `train` themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import gin.config

from jaxalign.cli import gin_binding
from jaxalign.cli.gin_setup import gin_config_paths
from jaxalign.errors import UserError
from jaxalign.objectives.base import Objective


def objective_from_gin(
    names: Sequence[str], macros: Mapping[str, Any], *, policy: Any, train_steps: int = 1000
) -> Objective:
    """Returns the objective of gin files ``objectives/<name>.gin``; it keeps its hyperparameters, and gin's configuration is then empty.

    Args:
      names: the names of the files; later files override earlier ones.
      macros: values of macros, such as ``BETA``.
      policy: the policy network, which also gives ``MODEL`` if it has a configuration.
      train_steps: the steps of the run, for schedules of a method.

    Raises:
      UserError: no file defines a macro.
    """
    gin.clear_config()
    # gin logs every search path that does not contain a file.
    gin.config._LOCATION_PREFIXES[:] = [
        path for path in gin_config_paths() if (Path(path) / "objectives").is_dir()
    ]
    try:
        for name in names:
            gin.parse_config_file(f"objectives/{name}.gin")
        known = {scope for scope, name in gin.config._CONFIG if name == "gin.macro"}
        if unknown := sorted(set(macros) - known):
            raise UserError(f"objectives/{names[-1]}.gin has no macro {', '.join(unknown)}")
        config = getattr(policy, "config", None)
        given = {"POLICY": policy, "MODEL": config, "TRAIN_STEPS": train_steps}
        for macro, value in {**macros, **given}.items():
            gin.bind_parameter(f"{macro}/gin.macro.value", value)
        gin_binding.bind_functions()
        return copy.deepcopy(gin.query_parameter("OBJECTIVE/gin.macro.value"))
    finally:
        gin.clear_config()
