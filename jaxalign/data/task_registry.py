"""Finds the record source for the name of a task."""

from __future__ import annotations

from jaxalign.data.bundled_sources import BUNDLED
from jaxalign.data.sources import RecordSource


def resolve_source(task: str) -> RecordSource:
    """Returns the source for a task's name: a bundled one, or one registered in `tasks` (which then imports seqio).

    Raises:
      DataError: there is no such task; the message lists the bundled names.
    """
    if task in BUNDLED:
        return BUNDLED[task]()
    from jaxalign.data import tasks

    return tasks.source_of_task(task)
