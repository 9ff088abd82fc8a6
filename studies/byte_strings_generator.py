"""Strings that are no language, with an exact property, its exact distribution, and so the exact optimum of KL-regularised reward.

Strings have 20 letters, of which two carry charge +1 and two -1. A prompt is two flanks around a gap, ``LEFT_RIGHT``; a response fills
the gap. Fillers come from a Markov chain that begins at the last letter of the left flank; their length is uniform. The feedback is minus
the absolute net charge of the whole string. The flanks of a prompt have a charge of their own, so prompts differ in difficulty.

The distribution of a filler's charge follows by dynamic programming over (letter, charge). This gives the expected feedback of natural
fillers, V*(x) = tau log E exp(r / tau), and reward and KL of the optimum pi* = natural exp((r - V*) / tau).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
GAP = "_"
SHORTEST, LONGEST = 6, 24
_FLANK = (8, 12)
_CHARGES = {"K": 1, "R": 1, "D": -1, "E": -1}
# The deviation of the tilt of a prompt's flanks towards positive letters.
_TILT = 1.2
_CHARGE = np.array([_CHARGES.get(letter, 0) for letter in LETTERS])


@functools.cache
def transitions() -> Float[np.ndarray, "letters letters"]:
    """Returns the chain: row i has the probabilities of the letter after letter i."""
    return np.random.default_rng(0).dirichlet(np.full(len(LETTERS), 0.5), len(LETTERS))


def charge(text: str) -> int:
    """Returns the net charge of a string; other characters have none."""
    return sum(_CHARGES.get(letter, 0) for letter in text)


def feedback(prompt: str, response: str) -> float:
    """Returns minus the absolute net charge of the whole string."""
    return -float(abs(charge(prompt) + charge(response)))


def draw_prompts(count: int, generator: np.random.Generator) -> list[str]:
    """Returns different prompts."""
    found: dict[str, None] = {}
    while len(found) < count:
        tilted = transitions() * np.exp(generator.normal(0, _TILT) * _CHARGE)
        chain = tilted / tilted.sum(axis=1, keepdims=True)
        left, right = (
            _walk(
                chain, generator.integers(len(LETTERS)), int(generator.integers(*_FLANK)), generator
            )
            for _ in range(2)
        )
        found[f"{left}{GAP}{right}"] = None
    return list(found)


def draw_filler(prompt: str, generator: np.random.Generator) -> str:
    """Returns a natural filler."""
    length = int(generator.integers(SHORTEST, LONGEST + 1))
    return _walk(transitions(), _last_letter(prompt), length, generator)


def _last_letter(prompt: str) -> int:
    return LETTERS.index(prompt.partition(GAP)[0][-1])


def _walk(
    chain: np.ndarray, letter: int | np.integer, length: int, generator: np.random.Generator
) -> str:
    found = []
    for _ in range(length):
        letter = generator.choice(len(LETTERS), p=chain[letter])
        found.append(LETTERS[letter])
    return "".join(found)


@functools.cache
def filler_charges() -> Float[np.ndarray, "letters charges"]:
    """Returns the distribution of a natural filler's charge, -`LONGEST` to `LONGEST`, by the last letter of the left flank."""
    letters, charges = len(LETTERS), 2 * LONGEST + 1
    # [first letter, current letter, charge]
    state = np.zeros((letters, letters, charges))
    state[np.arange(letters), np.arange(letters), LONGEST] = 1
    total = np.zeros((letters, charges))
    for length in range(1, LONGEST + 1):
        moved = np.einsum("fcq,cn->fnq", state, transitions())
        state = np.stack(
            [np.roll(moved[:, n], _CHARGE[n], axis=-1) for n in range(letters)], axis=1
        )
        if length >= SHORTEST:
            total += state.sum(axis=1)
    return total / (LONGEST - SHORTEST + 1)


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The optimum of KL-regularised feedback over natural fillers, by prompt; ``values`` in units of feedback."""

    values: np.ndarray
    rewards: np.ndarray
    kl: np.ndarray


def optimum(prompts: Sequence[str], temperature: float) -> Optimum:
    """Returns V*, the expected feedback of pi*, and KL(pi* || natural) of every prompt.

    Args:
      prompts: the prompts.
      temperature: tau, in units of feedback per nat; infinity for the natural fillers themselves.
    """
    natural = filler_charges()[[_last_letter(prompt) for prompt in prompts]]
    flanks = np.array([charge(prompt) for prompt in prompts])
    rewards = -np.abs(flanks[:, None] + np.arange(-LONGEST, LONGEST + 1))
    if np.isinf(temperature):
        expected = (natural * rewards).sum(axis=1)
        return Optimum(expected, expected, np.zeros(len(prompts)))
    highest = rewards.max(axis=1, keepdims=True)
    tilted = natural * np.exp((rewards - highest) / temperature)
    sums = tilted.sum(axis=1)
    values = highest[:, 0] + temperature * np.log(sums)
    expected = (tilted * rewards).sum(axis=1) / sums
    return Optimum(values, expected, (expected - values) / temperature)
