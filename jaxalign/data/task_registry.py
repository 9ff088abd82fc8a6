"""From the name of a task to the source of its records."""

from __future__ import annotations

from jaxalign.data.sources import BUNDLED, RecordSource


def resolve_source(task: str) -> RecordSource:
    """The source behind a task's name: a bundled one, or one registered in `tasks` (which then imports seqio).

    Raises:
      DataError: listing the bundled names, if there is no such task.
    """
    if task in BUNDLED:
        return BUNDLED[task]()
    from jaxalign.data import tasks

    return tasks.source_of_task(task)
