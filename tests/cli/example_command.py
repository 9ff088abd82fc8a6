"""A command for the tests of the command line, with one parameter of every kind a flag can have."""

import dataclasses
from typing import Any

from jaxalign.errors import UserError

CALLS: list[dict[str, Any]] = []


@dataclasses.dataclass(frozen=True)
class Engine:
    size: int
    fuel: str = "steam"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}; it must not be negative")


@dataclasses.dataclass(frozen=True)
class Unused:
    size: int = 1


def drive(
    model_dir: str,
    engine: Engine | None = None,
    *,
    steps: int = 10,
    rate: float = 0.5,
    loud: bool = False,
    places: list[str] = (),
    limit: int | None = None,
    at: int | str = "best",
    fail: str = "",
) -> None:
    """Drives.

    A second paragraph.

    Args:
      model_dir: where to go,
        on two lines.
      steps: how many steps.
      fail: which way to fail.

    Raises:
      UserError: if asked to.
    """
    CALLS.append({k: v for k, v in locals().items() if k != "fail"})
    if fail == "user":
        raise UserError("records.jsonl:3: feedback is NaN;\n  remove the record")
    if fail == "interrupt":
        raise KeyboardInterrupt
    if fail == "file":
        open("no/such/file.jsonl").close()
    if fail == "defect":
        raise ValueError("a defect of the program")
