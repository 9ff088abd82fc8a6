"""The bundled task: dialogue acts and sentences about places and laptops, with an exact oracle for slot errors.

A prompt is an act such as `inform restaurant ( name = golden lion ; food = thai ; price = cheap )`. A response is a sentence
that should mention every value and no other. A "behaviour" of adjustable quality writes the logged responses: each response
draws its own error rate, and with that rate every slot is left out or gets a wrong value, and a slot that was not requested
may be added. All values are words of a closed list, and each belongs to one slot, so error counts are exact.

Prompts differ in difficulty: acts have two to five slots, numbers and degrees (stars, drive, weight, parking) are mistaken more
often than other values, and every domain has a writer of its own care. So the expected feedback depends on the prompt.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jaxalign.data.records import Record

NAMES = (
    "golden lion", "silver spoon", "red dragon", "blue anchor", "green olive", "white swan",
    "black pearl", "old mill", "little fox", "happy panda", "royal oak", "rusty nail",
)  # fmt: skip
MODELS = ("aurora", "borealis", "cascade", "denali", "everest", "fuji", "glacier", "horizon")
VALUES = {
    "name": NAMES,
    "model": MODELS,
    "food": ("thai", "italian", "french", "mexican", "indian", "korean"),
    "price": ("cheap", "moderate", "expensive"),
    "area": ("riverside", "downtown", "harbour", "station", "university"),
    "stars": ("one", "two", "three", "four", "five"),
    "parking": ("free", "paid", "valet"),
    "drive": ("small", "medium", "large"),
    "weight": ("light", "heavy"),
    "colour": ("grey", "pink", "purple", "orange"),
}
DOMAINS = {
    "restaurant": ("name", "food", "price", "area"),
    "hotel": ("name", "price", "stars", "area", "parking"),
    "laptop": ("model", "drive", "weight", "price", "colour"),
}
# Every opening names the subject; every phrase mentions one value and no word of another slot's values.
_OPENINGS = {
    "inform": {
        "restaurant": ("{} is a restaurant", "{} is a place to eat"),
        "hotel": ("{} is a hotel", "{} is a place to stay"),
        "laptop": ("the {} is a laptop", "the {} is a computer"),
    },
    "recommend": {
        "restaurant": ("i recommend the restaurant {}", "you would like to eat at {}"),
        "hotel": ("i recommend the hotel {}", "you would like to stay at {}"),
        "laptop": ("i recommend the laptop {}", "you would like the laptop {}"),
    },
    "confirm": {
        "restaurant": ("did you want the restaurant {}", "do you mean the restaurant {}"),
        "hotel": ("did you want the hotel {}", "do you mean the hotel {}"),
        "laptop": ("did you want the laptop {}", "do you mean the laptop {}"),
    },
}
_PHRASES = {
    "food": ("serving {} food", "with {} dishes"),
    "price": ("with {} prices", "in the {} price range"),
    "area": ("in the {} area", "near the {}"),
    "stars": ("with {} stars", "rated {} stars"),
    "parking": ("with {} parking", "offering {} parking"),
    "drive": ("with a {} drive", "having a {} drive"),
    "weight": ("that is {}", "and it is {}"),
    "colour": ("in {}", "painted {}"),
}
_SUBJECTS = ("name", "model")
_SUBJECT_WORD = {"restaurant": "this restaurant", "hotel": "this hotel", "laptop": "laptop"}
_PAIR = re.compile(r"(\w+) = ([^;()=]*?) (?=[;)])")
_SLOT_OF_VALUE = {value: slot for slot, values in VALUES.items() for value in values}
_VALUE = re.compile(r"\b(?:" + "|".join(sorted(_SLOT_OF_VALUE, key=len, reverse=True)) + r")\b")


@dataclasses.dataclass(frozen=True)
class SlotErrors:
    """Counts for one response: slots of the act not mentioned, values mentioned that are not in the act, slots of the act."""

    missing: int
    invented: int
    total: int

    @property
    def errors(self) -> int:
        return self.missing + self.invented

    @property
    def rate(self) -> float:
        """(missing + invented) / total, the slot error rate; it can exceed 1."""
        return self.errors / max(self.total, 1)


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """The error rates of the simulated writer of the logged responses.

    Attributes:
      error_rates: each response draws one of these with equal chance: the probability that a slot has an error.
      wrong_share: the share of the slots with an error that have a wrong value; the others are left out.
      extra_rate: the probability, times the drawn error rate, of a slot that was not requested.
      hard_factor: factor of the error rate for slots of `HARD_SLOTS`; the product is cut at 1.
    """

    error_rates: Sequence[float] = (0.0, 0.1, 0.5)
    wrong_share: float = 0.5
    extra_rate: float = 0.5
    hard_factor: float = 1.0


HARD_SLOTS = frozenset({"stars", "parking", "drive", "weight"})
CLEAN = Behaviour(error_rates=(0.0,))
# The writer of each domain: careful, as above, careless.
WRITERS: Mapping[str, Behaviour] = {
    "restaurant": Behaviour(error_rates=(0.0, 0.0, 0.2), hard_factor=1.5),
    "hotel": Behaviour(error_rates=(0.0, 0.1, 0.5), hard_factor=1.5),
    "laptop": Behaviour(error_rates=(0.1, 0.4, 0.7), hard_factor=1.5),
}


def parse_act(prompt: str) -> list[tuple[str, str]]:
    """Returns the (slot, value) pairs of an act, in order."""
    return _PAIR.findall(prompt)


def is_act(prompt: str) -> bool:
    """Returns whether a prompt has the format `act domain ( slot = value ; ... )` of the bundled task."""
    words = prompt.split(" ", 3)
    return len(words) > 2 and words[1] in DOMAINS and words[2] == "("


def slot_errors(prompt: str, response: str) -> SlotErrors:
    """Counts the exact errors of a response: wanted values that are absent (missing), known values that are unwanted (invented).

    A wrong value counts twice, once missing and once invented, as in the usual slot error rate.
    """
    wanted = {value for _, value in parse_act(prompt)}
    said = set(_VALUE.findall(response.lower()))
    return SlotErrors(len(wanted - said), len(said - wanted), len(wanted))


def make_prompt(rng: random.Random) -> str:
    """Returns a random act: a domain, its subject and one to four more slots with values."""
    domain = rng.choice(sorted(DOMAINS))
    subject, *others = DOMAINS[domain]
    count = rng.choice((1, 2, 3, 4))
    chosen = set(rng.sample(others, min(count, len(others))))
    slots = [subject] + [slot for slot in others if slot in chosen]
    act = rng.choice(sorted(_OPENINGS))
    pairs = " ; ".join(f"{slot} = {rng.choice(VALUES[slot])}" for slot in slots)
    return f"{act} {domain} ( {pairs} )"


def make_response(prompt: str, rng: random.Random, behaviour: Behaviour = CLEAN) -> str:
    """Returns a sentence for the act, with the behaviour's errors."""
    act, domain = prompt.split(" ")[:2]
    error_rate = rng.choice(tuple(behaviour.error_rates))
    subject, phrases = None, []
    wanted = parse_act(prompt)
    for slot, value in wanted:
        said: str | None = value
        if rng.random() < error_rate * (behaviour.hard_factor if slot in HARD_SLOTS else 1.0):
            wrong = rng.random() < behaviour.wrong_share
            said = rng.choice([v for v in VALUES[slot] if v != value]) if wrong else None
        if slot in _SUBJECTS:
            subject = said
        elif said is not None:
            phrases.append(rng.choice(_PHRASES[slot]).format(said))
    spare = [slot for slot in DOMAINS[domain] if slot not in dict(wanted)]
    if spare and rng.random() < error_rate * behaviour.extra_rate:
        slot = rng.choice(spare)
        phrases.append(rng.choice(_PHRASES[slot]).format(rng.choice(VALUES[slot])))
    opening = rng.choice(_OPENINGS[act][domain])
    sentence = opening.format(subject if subject is not None else _SUBJECT_WORD[domain])
    end = "?" if act == "confirm" else "."
    return " ".join([sentence, *phrases, end])


def difficulty(prompt: str) -> float:
    """Returns a number in [-1, 1] that depends only on the prompt: on its domain and its act."""
    act, domain = prompt.split(" ")[:2]
    return (sorted(DOMAINS).index(domain) - 1) * 0.5 + (sorted(_OPENINGS).index(act) - 1) * 0.5


def feedback_for(
    prompt: str, response: str, *, feedback: str = "slots", difficulty_weight: float = 0.0
) -> float:
    """Returns an annotator's feedback: minus the slot error rate ("slots"), or 1 for no error and 0 otherwise ("thumbs").

    `difficulty_weight` times the prompt's `difficulty` is subtracted. This moves all responses of a prompt equally, so it
    changes no preference, but a method without a value for each prompt is affected by it.
    """
    errors = slot_errors(prompt, response)
    if feedback == "slots":
        value = 0.0 - errors.rate
    elif feedback == "thumbs":
        value = float(errors.errors == 0)
    else:
        raise ValueError(f"Unknown synthetic feedback {feedback!r}; known: 'slots', 'thumbs'.")
    return value - difficulty_weight * difficulty(prompt)


def make_prompts(num_prompts: int, seed: int) -> list[str]:
    """Returns `num_prompts` different acts, in a random order fixed by the seed."""
    rng = random.Random(f"prompts {seed}")
    prompts: dict[str, None] = {}
    attempts = 0
    while len(prompts) < num_prompts:
        prompts.setdefault(make_prompt(rng))
        attempts += 1
        if attempts > 100 * num_prompts + 1000:
            raise ValueError(
                f"Only {len(prompts)} different synthetic prompts were found, wanted {num_prompts}."
            )
    return list(prompts)


def make_records(
    kind: str,
    prompts: Iterable[str],
    *,
    responses_per_prompt: int = 1,
    seed: int = 0,
    behaviour: Behaviour | Mapping[str, Behaviour] = WRITERS,
    feedback: str = "slots",
    difficulty_weight: float = 0.0,
) -> Iterator[Record]:
    """Yields logged records of a kind (triplet, seq2seq, pair or ranked) for the prompts.

    A triplet or seq2seq prompt gives `responses_per_prompt` records. A pair is the best and the worst of that many
    responses (at least two; prompts whose responses tie give none). A ranked record has all of them, best first, with feedback.
    `behaviour` is that of one writer, or of one for each domain.
    """
    line = 0
    for prompt in prompts:
        rng = random.Random(f"responses {seed} {prompt}")
        drawn = max(responses_per_prompt, 2) if kind in ("pair", "ranked") else responses_per_prompt
        writer = (
            behaviour if isinstance(behaviour, Behaviour) else behaviour[prompt.split(" ", 2)[1]]
        )
        responses = [make_response(prompt, rng, writer) for _ in range(drawn)]
        scored = [
            (
                feedback_for(
                    prompt, response, feedback=feedback, difficulty_weight=difficulty_weight
                ),
                response,
            )
            for response in responses
        ]
        if kind in ("triplet", "seq2seq"):
            # If a prompt draws the same sentence twice, the second would be a duplicate record.
            for value, response in dict.fromkeys(scored):
                line += 1
                numbers = (value,) if kind == "triplet" else None
                yield Record(prompt, (response,), numbers, source="synthetic", line=line)
        elif kind in ("pair", "ranked"):
            scored.sort(key=lambda item: -item[0])
            if kind == "pair":
                if scored[0][0] == scored[-1][0]:
                    continue
                scored = [(scored[0][0] - scored[-1][0], scored[0][1]), (0.0, scored[-1][1])]
            line += 1
            yield Record(
                prompt,
                tuple(response for _, response in scored),
                tuple(value for value, _ in scored),
                source="synthetic",
                line=line,
            )
        else:
            raise ValueError(
                f"The synthetic task has no records of kind {kind!r}; it has triplet, seq2seq, pair and ranked."
            )
