"""Makes the machines of allowed tokens from the settings of decoding, and reads texts that a response must begin with or avoid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError
from jaxalign.networks.allowed_tokens import Intersection, MinimumLength, forced_prefix
from jaxalign.networks.decoding_hooks import Hooks
from jaxalign.networks.token_bans import NoRepeatedNGram, banned_sequences


def check_prefix(
    prefix: Sequence[int],
    bad_words: Sequence[Sequence[int]],
    no_repeat_ngram: int,
    max_target_length: int,
) -> None:
    """Refuses a forced prefix with which no response could end.

    Raises:
      UserError: the prefix is too long, holds a bad word, or repeats a sequence of tokens that must not be repeated.
    """
    if len(prefix) > max_target_length:
        raise UserError(
            f"forced_prefix has {len(prefix)} tokens, and responses are cut after {max_target_length}; raise max_target_length"
        )

    def parts(length: int) -> list[tuple[int, ...]]:
        return [tuple(prefix[i : i + length]) for i in range(len(prefix) - length + 1)]

    for word in bad_words:
        if word and tuple(word) in parts(len(word)):
            raise UserError(
                f"forced_prefix contains the tokens {list(word)}, which bad_words forbids; change one of them"
            )
    repeated = parts(no_repeat_ngram) if no_repeat_ngram else []
    if len(set(repeated)) < len(repeated):
        raise UserError(
            f"forced_prefix repeats a sequence of {no_repeat_ngram} tokens, which no_repeat_ngram forbids; change one of them"
        )


def constrained(
    hooks: Hooks,
    *,
    min_target_length: int,
    no_repeat_ngram: int,
    prefix: Sequence[int],
    bad_words: Sequence[Sequence[int]],
) -> Hooks:
    """Returns hooks that also obey settings of decoding, which `inference.sampling.DecodingSettings` describes."""
    machines: list[Any] = []
    if min_target_length > 1:
        machines.append(MinimumLength(min_target_length))
    if prefix:
        machines.append(forced_prefix([prefix]))
    if no_repeat_ngram:
        machines.append(NoRepeatedNGram(no_repeat_ngram))
    if bad_words:
        machines.append(banned_sequences(bad_words))
    if not machines:
        return hooks
    if hooks.allowed is not None:
        machines.insert(0, hooks.allowed)
    allowed = machines[0] if len(machines) == 1 else Intersection(tuple(machines))
    return Hooks(allowed, hooks.score, hooks.renormalize)


def prefix_tokens(text: str, vocabulary: Any) -> tuple[int, ...]:
    """Returns the tokens of a text with which every response begins."""
    tokens = tuple(int(token) for token in vocabulary.encode(text)) if text else ()
    if vocabulary.unk_id in tokens:
        raise UserError(f"forced_prefix={text!r} has characters that the vocabulary does not know")
    return tokens


def read_bad_words(path: str, vocabulary: Any) -> tuple[tuple[int, ...], ...]:
    """Returns the tokens of the words and phrases of a file, one per line; blank lines are skipped.

    Each is banned as the pieces into which the vocabulary splits it when it stands alone: with a SentencePiece model, at the beginning of a
    word. Another spelling, and another split into pieces, is another word.

    Raises:
      UserError: the file cannot be read, has no words, or the vocabulary does not know a word.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"bad_words={path}: cannot be read ({error})") from error
    words = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        tokens = tuple(int(token) for token in vocabulary.encode(line.strip()))
        if not tokens or vocabulary.unk_id in tokens:
            raise UserError(f"{path}:{number}: the vocabulary does not know {line.strip()!r}")
        words.append(tokens)
    if not words:
        raise UserError(f"bad_words={path}: has no words")
    return tuple(dict.fromkeys(words))
