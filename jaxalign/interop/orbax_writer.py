"""Writes Orbax items array by array. Orbax itself requires all arrays in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from jaxalign.interop.arrays import LazyArray, reading_order
from jaxalign.interop.parameters import flatten


def write(path: str, tree: Any) -> None:
    """Writes nested dicts of lazy arrays as an Orbax item, which Orbax restores as arrays.

    Args:
      path: the new folder, which must not exist yet.
      tree: the nested dicts of arrays.
    """
    # Orbax warns about metadata that only arrays on devices have, and prints the errors that it raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    registry = ocp.type_handlers.create_type_handler_registry((LazyArray, _OneByOne(tree)))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """A handler that reads and writes the arrays of a batch one after another."""

    def __init__(self, tree: Any) -> None:
        super().__init__(deepcopy_host_arrays=False)
        flat = flatten(tree)
        self._place = {id(flat[name]): place for place, name in enumerate(reading_order(flat))}

    def memory_size(self, values: Sequence[LazyArray]) -> Sequence[tuple[int, int]]:
        return [(value.nbytes, 0) for value in values]

    async def serialize(
        self, values: Sequence[LazyArray], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        order = sorted(range(len(values)), key=lambda i: self._place[id(values[i])])
        return [_Writing(super().serialize, [(values[i], infos[i], args[i]) for i in order])]


class _Writing:
    """A future that does its work when its result is requested. Orbax requests it after the folder exists."""

    def __init__(self, serialize: Any, items: Sequence[tuple[LazyArray, Any, Any]]) -> None:
        self._serialize, self._items = serialize, items

    def result(self, timeout: float | None = None) -> None:
        """Reads and writes all arrays."""
        for lazy, info, args in self._items:
            array = np.asarray(lazy.read(), order="C")
            for future in asyncio.run(self._serialize([array], [info], [args])):
                future.result(timeout)
        self._items = []
