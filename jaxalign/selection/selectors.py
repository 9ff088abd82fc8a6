"""Selectors: pure functions from annotated candidates to training records. They are plug-ins, see `jaxalign.plugins` for their names.

A selector is a frozen dataclass of settings, called with candidates. It drops duplicates and ties, and counts what it drops by reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxalign.data.candidates import Candidates
from jaxalign.plugins import Registry


@dataclasses.dataclass(frozen=True)
class Selection:
    """The result of a selector.

    Attributes:
      lines: the JSON objects of the records, see `jaxalign.data.records`; further fields (such as `similarity`) are for diagnostics.
      kind: the kind of the records: "triplet", "pair", "ranked", "seq2seq" or "multi"; "candidates" if they are still to be labelled.
      dropped: the number of prompts, responses or pairs left out, by reason.
      measures: numbers that describe the selection, such as the share of suspects or the mean length of chosen responses.
    """

    lines: Sequence[Mapping[str, Any]]
    kind: str
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    measures: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Selector(Protocol):
    """Turns annotated candidates into records. The result depends on nothing but the candidates and the settings (a seed among them)."""

    def __call__(self, candidates: Candidates) -> Selection:
        """Returns the records.

        Raises:
          DataError: an annotation is missing or has another kind.
        """


def _own(name: str, function: Callable[..., Any]) -> Selector:
    del name
    return function


_REGISTRY: Registry[Selector] = Registry("selector", _own)
register_selector = _REGISTRY.register
selector_names = _REGISTRY.names
get_selector = _REGISTRY.build
