"""Counts slot errors of sentences for RNNLG dialogue acts, and delexicalises acts and sentences.

An act is `inform(name='inn on castro';area='the castro')` or `recommend(name=tecra pan 29;memory=4 gb)`. Rules for counting slots:

* A value is mentioned if its words occur in the sentence consecutively. Before the comparison both are lower-cased, plural
  marks (` -s`) are removed, punctuation is dropped, numbers are separated from letters and written in one form (`2.0`
  becomes `2`), and so are the plurals of units and the short forms of street names.
* `a or b`, `a and b` and `a , b` are several values; all must be mentioned.
* `yes`, `no`, `true`, `false` say whether something holds: the slot is mentioned if one of its cue words occurs
  (`hasusbport`: usb). Whether the sentence affirms or denies it is not evaluated.
* `dontcare`, `none`, `?` and a slot without value (`request(area)`), and `type`, which every domain implies, are not counted.
* Missing: counted slots of the act that the sentence does not mention, one each.
* Invented: values that are not in the act. With a `Lexicon` made from training acts these are names, figures with a unit,
  addresses and other distinctive values; everyday words (good, small, black) are never counted. Placeholders that are not
  in the act are always counted.

Delexicalised acts and sentences have placeholders such as SLOT_NAME for values, and the same rules apply to them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from jaxalign.data.synthetic import SlotErrors

_ACT = re.compile(r"^\s*\??\s*([\w ]+?)\s*\((.*)\)\s*$", re.DOTALL)
_SEPARATOR = re.compile(r"[;,](?=\s*\w+\s*(?:=|;|$))")
_PARTS = re.compile(r" or | and | , ")
_PLACEHOLDER = re.compile(r"SLOT_[A-Z]+(?:_\d+)?")
_WORD = re.compile(r"slot_[a-z]+(?:_\d+)?|\d+(?:\.\d+)?|[^\W\d_]+\+*")
_SAME_WORD = {
    "watts": "watt", "inches": "inch", "hours": "hour", "dollars": "dollar", "st": "street", "ave": "avenue",
}  # fmt: skip
_BOOLEAN = frozenset({"yes", "no", "true", "false"})
_UNCOUNTED_VALUES = frozenset({"", "?", "none", "dontcare", "dont_care", "don't care"})
_UNCOUNTED_SLOTS = frozenset({"type"})
_CUES: Mapping[str, tuple[str, ...]] = {
    "hasinternet": ("internet", "wifi", "wireless", "online"),
    "dogsallowed": ("dog", "dogs", "pet", "pets", "canine"),
    "kidsallowed": ("kid", "kids", "child", "children", "family", "families"),
    "acceptscreditcards": ("credit", "card", "cards"),
    "isforbusinesscomputing": (
        "business", "nonbusiness", "work", "working", "corporate", "professional", "personal", "home", "everyday",
        "office", "leisure", "general",
    ),
    "hasusbport": ("usb", "port", "ports"),
}  # fmt: skip
# Slots whose values hardly ever occur by accident.
_UNMISTAKABLE = frozenset(
    {
        "name", "area", "near", "address", "phone", "postcode", "price", "weight", "dimension", "drive",
        "memory", "battery", "warranty", "processor", "platform", "screensize", "resolution",
        "powerconsumption", "food", "audio", "count",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Act:
    """A parsed act: its type and its (slot, value) pairs in order, with value "" if there is none."""

    type: str
    slots: tuple[tuple[str, str], ...]


@functools.lru_cache(maxsize=65536)
def parse_act(prompt: str) -> Act:
    """Returns the act in the text; raises ValueError if it is not `type(slot=value;...)`."""
    match = _ACT.match(prompt)
    if match is None:
        raise ValueError(f"Not a dialogue act such as inform(name='x';area='y'): {prompt[:80]!r}")
    slots = []
    for part in _SEPARATOR.split(match.group(2)) if match.group(2).strip() else []:
        slot, _, value = part.partition("=")
        slots.append((slot.strip().lower(), value.strip().strip("'\"").strip()))
    return Act(match.group(1).strip(), tuple(slots))


@functools.lru_cache(maxsize=65536)
def words(text: str) -> tuple[str, ...]:
    """Returns the normalised words, as described above."""
    text = text.lower().replace(" -s", "").replace("-s ", " ")
    return tuple(_same_number(word) for word in _WORD.findall(text))


def _same_number(word: str) -> str:
    if "." in word and word[0].isdigit():
        return word.rstrip("0").rstrip(".")
    return _SAME_WORD.get(word, word)


def counted_slots(act: Act) -> list[tuple[str, str]]:
    """Returns the slots whose mention can be checked."""
    return [
        (slot, value)
        for slot, value in act.slots
        if slot not in _UNCOUNTED_SLOTS
        and value.lower() not in _UNCOUNTED_VALUES
        and (value.lower() not in _BOOLEAN or slot in _CUES)
    ]


def _values(value: str) -> list[tuple[str, ...]]:
    return [found for found in (words(part) for part in _PARTS.split(value.lower())) if found]


def _find(needle: tuple[str, ...], hay: list[str]) -> int:
    """Returns the position at which the words occur consecutively, or -1."""
    size = len(needle)
    for start in range(len(hay) - size + 1):
        if hay[start] == needle[0] and tuple(hay[start : start + size]) == needle:
            return start
    return -1


def is_mentioned(slot: str, value: str, response: str) -> bool:
    """Returns whether the sentence mentions the slot with this value."""
    said = list(words(response))
    if value.lower() in _BOOLEAN and slot in _CUES:
        return any(cue in said for cue in _CUES[slot])
    return all(_find(part, said) >= 0 for part in _values(value))


class Lexicon:
    """The distinctive values of a set of acts, used to recognise invented values."""

    def __init__(self, prompts: Iterable[str]):
        values: set[tuple[str, ...]] = set()
        slot_names: set[str] = set()
        for prompt in set(prompts):
            slot_names.update(slot for slot, _ in parse_act(prompt).slots)
            for slot, value in counted_slots(parse_act(prompt)):
                if slot in _UNMISTAKABLE:
                    values.update(part for part in _values(value) if _is_distinctive(slot, part))
        # A word that is part of a slot's name (range, in pricerange) does not state a value.
        values = {v for v in values if len(v) > 1 or not any(v[0] in name for name in slot_names)}
        self._by_first: dict[str, list[tuple[str, ...]]] = {}
        for value_words in sorted(values, key=lambda item: (-len(item), item)):
            self._by_first.setdefault(value_words[0], []).append(value_words)

    def find(self, said: list[str]) -> set[tuple[str, ...]]:
        """Returns the values in the words, longest first, without overlap."""
        found: set[tuple[str, ...]] = set()
        start = 0
        while start < len(said):
            for value in self._by_first.get(said[start], ()):
                if tuple(said[start : start + len(value)]) == value:
                    found.add(value)
                    start += len(value) - 1
                    break
            start += 1
        return found


def _is_distinctive(slot: str, value: tuple[str, ...]) -> bool:
    """Returns whether a value has several words, or is a name or a long number instead of an everyday word."""
    if len(value) > 1:
        return True
    return slot in ("name", "area", "near", "food", "phone", "postcode", "resolution") and (
        len(value[0]) >= 4
    )


def slot_errors(prompt: str, response: str, lexicon: Lexicon | None = None) -> SlotErrors:
    """Counts the slot errors of a sentence for an act, by the rules at the top of this module.

    Args:
      prompt: the act, lexical or delexicalised.
      response: the sentence, in the same form.
      lexicon: the known values; without it only placeholders are recognised as invented.
    """
    counted = counted_slots(parse_act(prompt))
    missing = sum(not is_mentioned(slot, value, response) for slot, value in counted)
    wanted_placeholders = set(_PLACEHOLDER.findall(prompt))
    invented = len(set(_PLACEHOLDER.findall(response)) - wanted_placeholders)
    if lexicon is not None:
        invented += len(_unwanted(prompt, response, lexicon))
    return SlotErrors(missing, invented, len(counted))


def _unwanted(prompt: str, response: str, lexicon: Lexicon) -> set[tuple[str, ...]]:
    """Returns the known values in the sentence that are not part of any value of the act."""
    act_values = [words(value.lower()) for _, value in parse_act(prompt).slots]
    said = list(words(response))
    # Wanted values are removed first, so that a known value inside one of them is not found.
    for value in sorted(act_values, key=len, reverse=True):
        while value and (start := _find(value, said)) >= 0:
            said[start : start + len(value)] = [""]
    return {
        value
        for value in lexicon.find(said)
        if not any(_find(value, list(wanted)) >= 0 for wanted in act_values)
    }


def delexicalise_act(prompt: str) -> tuple[str, dict[str, str]]:
    """Returns the act with placeholders for its values, and the value of each placeholder.

    Every counted value except yes, no, true and false becomes SLOT_<SLOT>, and a second value of the same slot becomes
    SLOT_<SLOT>_2. Each part of `a or b` and of `a and b` becomes one placeholder. Other slots stay as they are.
    """
    act = parse_act(prompt)
    counted = set(counted_slots(act))
    numbers: Counter[str] = Counter()
    values: dict[str, str] = {}
    written = []
    for slot, value in act.slots:
        if (slot, value) in counted and value.lower() not in _BOOLEAN:
            parts = re.split(r"( or | and )", value)
            for i in range(0, len(parts), 2):
                numbers[slot] += 1
                number = f"_{numbers[slot]}" if numbers[slot] > 1 else ""
                placeholder = f"SLOT_{re.sub('[^A-Z]', '', slot.upper())}{number}"
                values[placeholder] = parts[i]
                parts[i] = placeholder
            value = "".join(parts)
        written.append(f"{slot}={value}" if value else slot)
    question = "?" if prompt.lstrip().startswith("?") else ""
    return f"{question}{act.type}({';'.join(written)})", values


def delexicalise(prompt: str, response: str) -> tuple[str, str, dict[str, str]]:
    """Returns the act and the sentence with placeholders, and the values of the placeholders.

    In the sentence, values are replaced where they occur literally (in any case, with a plural ending), longer values
    first. Equal values are assigned to the slots in order, one occurrence each, and the last slot takes the rest.
    """
    act, values = delexicalise_act(prompt)
    by_text: dict[str, list[str]] = {}
    for placeholder, value in values.items():
        by_text.setdefault(value.lower(), []).append(placeholder)
    for text in sorted(by_text, key=len, reverse=True):
        if not text:
            continue
        pattern = re.compile(
            rf"(?<![\w.]){re.escape(text)}(?: -s|e?s)?(?![\w+]|\.\d)", re.IGNORECASE
        )
        queue = list(by_text[text])

        def next_placeholder(_: re.Match[str], queue: list[str] = queue) -> str:
            return queue.pop(0) if len(queue) > 1 else queue[0]

        response = pattern.sub(next_placeholder, response)
    return act, response, values


def placeholders(texts: Iterable[str]) -> list[str]:
    """Returns the sorted placeholders that occur in the texts; a vocabulary should keep each of them as one piece."""
    return sorted({found for text in texts for found in _PLACEHOLDER.findall(text)})
