"""Objectives for studies, made from the gin files that users train with."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxalign.objectives.base import Objective


@contextlib.contextmanager
def objective_from_gin(
    names: Sequence[str], macros: Mapping[str, Any], *, policy: Any
) -> Iterator[Objective]:
    """The objective of gin files ``objectives/<name>.gin``; gin's values hold until the context ends, since losses read them when traced.

    Args:
      names: files, later ones override earlier ones.
      macros: values of macros, such as ``BETA``.
      policy: the policy network, which also gives ``MODEL``.
    """
    import gin

    from jaxalign.cli.gin_setup import gin_config_paths

    gin.clear_config()
    gin.config._LOCATION_PREFIXES[:] = gin_config_paths()
    try:
        for name in names:
            gin.parse_config_file(f"objectives/{name}.gin")
        for macro, value in {**macros, "POLICY": policy, "MODEL": policy.config}.items():
            gin.bind_parameter(f"{macro}/gin.macro.value", value)
        yield copy.deepcopy(gin.query_parameter("OBJECTIVE/gin.macro.value"))
    finally:
        gin.clear_config()
