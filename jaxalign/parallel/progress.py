"""Progress of long computations on standard error, with the time that is left; nothing is shown of short ones."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
# Seconds before anything is shown, and between two lines where standard error is a file.
_TERMINAL, _FILE = 5.0, 30.0


def progress(
    items: Iterable[tuple[int, Item]], total: int | None, what: str, unit: str
) -> Iterator[Item]:
    """Yields items, and shows how many units are done, of the first process alone.

    Args:
      items: pairs of a number of units and an item. The units count as done when the next item is asked for.
      total: the number of all units, if it is known.
      what: what is done, such as "generating".
      unit: what is counted, such as "prompt".
    """
    terminal = sys.stderr.isatty()
    with tqdm(
        total=total,
        desc=what,
        unit=unit,
        file=sys.stderr,
        disable=not _is_first_process(),
        delay=_TERMINAL if terminal else _FILE,
        mininterval=0.5 if terminal else _FILE,
        dynamic_ncols=True,
        leave=False,
    ) as bar:
        for units, item in items:
            yield item
            bar.update(units)


def _is_first_process() -> bool:
    # A command that has not imported this module, and JAX with it, is one process.
    distributed = sys.modules.get("jaxalign.parallel.distributed")
    return distributed is None or distributed.is_primary_process()
