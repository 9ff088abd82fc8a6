"""Offline alignment of T5 encoder-decoder models from logged feedback.

`train`, `load_run`, `LoadedRun`, `inspect`, `evaluate` and `TaskCache` are loaded when they are first used; importing the package loads
nothing else. The parts are in `jaxalign.losses`, `jaxalign.networks`, `jaxalign.objectives`, `jaxalign.data`, `jaxalign.training`,
`jaxalign.evaluation`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxalign.version import __version__ as __version__

if TYPE_CHECKING:
    from jaxalign.api import LoadedRun, load_run, train
    from jaxalign.data.task_cache import TaskCache
    from jaxalign.evaluation.evaluate import evaluate
    from jaxalign.inspection.file_inspection import inspect

__all__ = ["LoadedRun", "TaskCache", "evaluate", "inspect", "load_run", "train"]

_MODULES = {
    "LoadedRun": "jaxalign.api",
    "TaskCache": "jaxalign.data.task_cache",
    "evaluate": "jaxalign.evaluation.evaluate",
    "inspect": "jaxalign.inspection.file_inspection",
    "load_run": "jaxalign.api",
    "train": "jaxalign.api",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'jaxalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
