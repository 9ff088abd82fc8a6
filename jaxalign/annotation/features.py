"""Named features of a response that are read from its text, for rewards that are functions of a few scores (`FeatureReward`).

An extractor is a plug-in like a judge: `name` or `name:argument`, or `module:function` for a function (prompts, responses) -> one number
per response of one's own. Its specification is the name of the score, which a run records; so a run's reward can judge text. A run never
names a function that is called: it can use the registered extractors only.

    @register_extractor("questions")
    def questions(argument):
        return lambda prompts, responses: [text.count("?") for text in responses]
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.data import slots, synthetic
from jaxalign.errors import UserError
from jaxalign.plugins import Registry
from jaxalign.runs.folder import Run

Extractor = Callable[[Sequence[str], Sequence[str]], Any]
# A factory takes the text after the extractor's name.
_REGISTRY: Registry[Extractor] = Registry(
    "extractor", lambda name, function: function, settings=False
)
register_extractor = _REGISTRY.register
extractor_names = _REGISTRY.names
_WORD = re.compile(r"\w+(?:['.\-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_PUNCTUATION = re.compile(r"[^\w\s]")


def get_extractor(spec: str, *, of_run: bool = False) -> Extractor:
    """Returns the extractor of a specification.

    Args:
      spec: the specification.
      of_run: whether a run folder names it. Then no module is imported, because nothing that a run folder says is executed.

    Raises:
      UserError: the name is unknown, the module cannot be imported, or the module has no such function.
    """
    name, _, argument = spec.partition(":")
    if of_run and argument and name not in _REGISTRY:
        raise UserError(
            f"the extractor {spec!r} is a function outside of jaxalign, which is not called because a run folder names it; compute these "
            "scores with jaxalign annotate --annotator=features:..., or judge with a function of your own, module:function"
        )
    return _REGISTRY.build(spec)


def extract(
    extractors: Sequence[Extractor], prompts: Sequence[str], responses: Sequence[str]
) -> Float[np.ndarray, "responses features"]:
    """Returns the features of every response, one column for each extractor.

    Raises:
      UserError: an extractor does not give one finite number per response.
    """
    columns = []
    for number, extractor in enumerate(extractors):
        column = np.asarray(extractor(prompts, responses), np.float64)
        if column.shape != (len(responses),) or not np.isfinite(column).all():
            raise UserError(
                f"feature {number} has the shape {list(column.shape)} or is not finite for {len(responses)} responses; an extractor must "
                "give one finite number each"
            )
        columns.append(column)
    return np.stack(columns, axis=-1) if columns else np.zeros((len(responses), 0))


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case."""
    return _WORD.findall(text.lower())


def _plain(name: str, measure: Callable[[str, str], float]) -> None:
    """Registers an extractor without argument that measures one (prompt, response)."""

    def factory(argument: str) -> Extractor:
        if argument:
            raise UserError(f"extractor {name!r} takes no argument, got {argument!r}")
        return lambda prompts, responses: [
            measure(prompt, text) for prompt, text in zip(prompts, responses, strict=True)
        ]

    register_extractor(name)(factory)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _overlap(prompt: str, response: str) -> float:
    known, found = set(words(prompt)), words(response)
    return _share(sum(word in known for word in found), len(found))


def _coverage(prompt: str, response: str) -> float:
    wanted = set(words(prompt))
    return _share(len(wanted & set(words(response))), len(wanted))


def _type_token_ratio(prompt: str, response: str) -> float:
    found = words(response)
    return _share(len(set(found)), len(found))


def _repetition(prompt: str, response: str) -> float:
    found = words(response)
    pairs = list(itertools.pairwise(found))
    return _share(len(pairs) - len(set(pairs)), len(pairs))


def _sentences(prompt: str, response: str) -> float:
    text = response.strip()
    ends = len(_SENTENCE_END.findall(text))
    return float(ends + bool(text and not _SENTENCE_END.search(text[-1:])))


def _slot_errors(prompt: str, response: str) -> float:
    try:
        if synthetic.is_act(prompt):
            return synthetic.slot_errors(prompt, response).rate
        return slots.slot_errors(prompt, response).rate
    except ValueError as error:
        raise UserError(
            f"extractor 'slot_errors' needs dialogue acts as prompts: {error}"
        ) from None


_plain("words", lambda prompt, response: float(len(words(response))))
_plain("characters", lambda prompt, response: float(len(response)))
_plain("sentences", _sentences)
_plain(
    "punctuation",
    lambda prompt, response: _share(len(_PUNCTUATION.findall(response)), len(response)),
)
_plain("overlap", _overlap)
_plain("coverage", _coverage)
_plain("type_token_ratio", _type_token_ratio)
_plain("repetition", _repetition)
_plain("digits", lambda prompt, response: float(sum(c.isdigit() for c in response)))
# Without a lexicon of other acts, so that the number depends on this prompt and response only.
_plain("slot_errors", _slot_errors)


@register_extractor("tokens")
def _tokens(argument: str) -> Extractor:
    """Builds the extractor `tokens:RUN`, the number of pieces of a run's vocabulary, without EOS."""
    if not argument:
        raise UserError("extractor 'tokens' needs a run, whose vocabulary counts: tokens:RUN")
    vocabulary = Run(argument).vocabulary
    return lambda prompts, responses: [
        float(len(tokens)) for tokens in vocabulary.encode_batch(list(responses))
    ]
