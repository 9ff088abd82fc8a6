"""How an evaluation reads the lines of a file, and whether lines have another form, such as the layout of another library."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data import recognition
from jaxalign.data.chat_templates import ChatTemplate
from jaxalign.data.records import KINDS


@dataclasses.dataclass(frozen=True)
class Form:
    """How a file is read: its kind ('' to detect it for each line), its layout, its names of our fields, and its chat template."""

    kind: str
    layout: str
    fields: Mapping[str, str]
    template: ChatTemplate | None = None

    def other(self, obj: Any) -> recognition.Found | None:
        """Returns the form that an object has if it is another one; None if it is this one or unknown."""
        found = recognition.layout_of(obj)
        renamed = {ours: theirs for ours, theirs in self.fields.items() if ours != theirs}
        if found is None or (
            self.kind in ("", found.kind)
            and (found.layout, dict(found.fields)) == (self.layout, renamed)
        ):
            return None
        return found

    def other_with_responses(self, obj: Any) -> recognition.Found | None:
        """Returns the form in which an object that was read as a prompt alone has responses; None if it has none."""
        found = self.other(obj)
        if found is None or found.kind not in KINDS:
            return None
        # The responses of `generate` are meant to be left out, and the field `target` is read as a reference.
        generated = found.layout == "candidates" and found.kind == "seq2seq"
        return None if generated or ("response", "target") in found.fields else found

    def remedy(self, found: recognition.Found) -> str:
        """Returns what a user does with a file of another form, to follow the words "the record looks like ..., which is"."""
        if found.layout in ("ultrafeedback", "candidates"):
            return f"evaluated from a cache: make one with `jaxalign cache --layout={found.layout}`, and give that as --prompts"
        options = found.options()
        if not self.kind or found.kind not in KINDS:
            del options["kind"]
        flags = " ".join(f"--{name}={value}" for name, value in options.items())
        return f"read with {flags}" if flags else "read without --layout and --fields"

    def note(self, path: str, only_prompts: Sequence[recognition.Found]) -> str:
        """Returns a sentence about the lines of which only the prompt was read, from the forms of their responses; '' for no such line."""
        if not only_prompts:
            return ""
        found = only_prompts[0]
        return (
            f"{path}: only the prompts of {len(only_prompts)} lines are used; with their responses they look like {found.describe()}, "
            f"which is {self.remedy(found)}"
        )
