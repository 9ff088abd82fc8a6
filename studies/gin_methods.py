"""Objectives for studies, made from the gin files that users train with."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError
from jaxalign.objectives.base import Objective


@contextlib.contextmanager
def objective_from_gin(
    names: Sequence[str], macros: Mapping[str, Any], *, policy: Any, train_steps: int = 1000
) -> Iterator[Objective]:
    """The objective of gin files ``objectives/<name>.gin``; gin's values hold until the context ends, since losses read them when traced.

    Args:
      names: files, later ones override earlier ones.
      macros: values of macros, such as ``BETA``.
      policy: the policy network, which also gives ``MODEL``.
      train_steps: the run's, for schedules of a method.

    Raises:
      UserError: a macro that no file defines.
    """
    import gin

    from jaxalign.cli.gin_setup import gin_config_paths

    gin.clear_config()
    # Without the other places gin would log every one in which a file is not.
    gin.config._LOCATION_PREFIXES[:] = [
        path for path in gin_config_paths() if (Path(path) / "objectives").is_dir()
    ]
    try:
        for name in names:
            gin.parse_config_file(f"objectives/{name}.gin")
        known = {scope for scope, name in gin.config._CONFIG if name == "gin.macro"}
        if unknown := sorted(set(macros) - known):
            raise UserError(f"objectives/{names[-1]}.gin has no macro {', '.join(unknown)}")
        given = {"POLICY": policy, "MODEL": policy.config, "TRAIN_STEPS": train_steps}
        for macro, value in {**macros, **given}.items():
            gin.bind_parameter(f"{macro}/gin.macro.value", value)
        yield copy.deepcopy(gin.query_parameter("OBJECTIVE/gin.macro.value"))
    finally:
        gin.clear_config()
