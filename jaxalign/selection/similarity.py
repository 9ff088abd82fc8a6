"""REAL: which two responses to a prompt are worth a label, by the similarity of their embeddings (arXiv 2409.17169)."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxalign.data.candidates import Candidates
from jaxalign.errors import require_one_of
from jaxalign.selection.selectors import Selection, register_selector
from jaxalign.selection.usable import usable_responses

MODES = ("easy", "random", "hard", "centroid", "length")
_LLOYD_STEPS = 10
_SMALLEST_NORM = 1e-8


def centred_normalised(
    vectors: Sequence[Float[np.ndarray, "responses width"]],
    *,
    centre: bool = True,
    lengths: Sequence[Float[np.ndarray, " responses"]] | None = None,
) -> list[Float[np.ndarray, "responses width"]]:
    """Returns vectors of length 1, after subtracting the mean of all vectors.

    Without centring, mean-pooled states of a language model all have cosines near 0.9, so that near-ties decide.

    Args:
      vectors: the vectors of every prompt's responses; rows with NaN do not count.
      centre: whether to subtract the mean.
      lengths: if given, the linear dependence on the log of these lengths is removed too.
    """
    pool = np.concatenate(list(vectors)) if vectors else np.zeros((0, 1))
    known = np.isfinite(pool).all(axis=1)
    if centre and known.any():
        pool = pool - pool[known].mean(axis=0)
    if lengths is not None and known.any():
        logs = np.log(np.maximum(np.concatenate(list(lengths)), 1.0))
        logs = logs - logs[known].mean()
        slopes = logs[known] @ pool[known] / max(float(logs[known] @ logs[known]), _SMALLEST_NORM)
        pool = pool - logs[:, None] * slopes
    norms = np.maximum(np.linalg.norm(pool, axis=1, keepdims=True), _SMALLEST_NORM)
    ends = np.cumsum([len(rows) for rows in vectors])[:-1]
    return np.split(pool / norms, ends) if vectors else []


def similar_pair(
    vectors: Float[np.ndarray, "responses width"], mode: str, generator: np.random.Generator
) -> tuple[int, int]:
    """Returns the indices of two responses, the smaller one first.

    Args:
      vectors: normalised vectors of at least two responses.
      mode: 'easy' for the least similar, 'hard' for the most similar, 'random', or 'centroid' for the samples nearest to the two centres
        of 2-means. The first pair wins a tie.
      generator: of 'random'.
    """
    first, second = np.triu_indices(len(vectors), 1)
    similarities = (vectors @ vectors.T)[first, second]
    if mode == "random":
        pair = int(generator.integers(len(first)))
    elif mode == "hard":
        pair = int(np.argmax(similarities))
    else:
        pair = int(np.argmin(similarities))
    i, j = int(first[pair]), int(second[pair])
    return _nearest_to_centres(vectors, i, j) if mode == "centroid" else (i, j)


@register_selector("similar_pairs")
@dataclasses.dataclass(frozen=True)
class SimilarPairs:
    """The two responses to every prompt that are to be labelled, as candidates with two responses. Labels come afterwards.

    A line gets the fields `similarity` (the cosine, if both vectors are known) and `length_difference` (characters). The annotations of
    the two responses stay.

    Attributes:
      mode: 'easy' (the least similar; recommended), 'hard', 'random', 'centroid' or 'length' (the lengths that differ most: a baseline that
        needs no embedding).
      vectors: the annotation with the embeddings; 'random' and 'length' do without it.
      centre: whether to subtract the mean embedding.
      without_length: whether to remove the dependence of the embeddings on the log of the length.
      seed: of 'random'.
    """

    mode: str = "easy"
    vectors: str = "embedding"
    centre: bool = True
    without_length: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require_one_of("similar_pairs", MODES, mode=self.mode)

    def __call__(self, candidates: Candidates) -> Selection:
        lengths = [np.array([len(text) for text in texts], float) for texts in candidates.responses]
        needs_vectors = self.mode not in ("random", "length")
        if needs_vectors or self.vectors in candidates.annotations:
            vectors = centred_normalised(
                candidates.annotation(self.vectors, "vectors").values,
                centre=self.centre,
                lengths=lengths if self.without_length else None,
            )
        else:
            vectors = [np.zeros((len(texts), 1)) for texts in candidates.responses]
        dropped: Counter[str] = Counter()
        usable = usable_responses(candidates, dropped, vectors if needs_vectors else None)
        generator = np.random.default_rng(self.seed)
        chosen: list[tuple[int, list[int]]] = []
        for index, kept in enumerate(usable):
            if not kept:
                continue
            if self.mode == "length":
                i, j = _most_different(lengths[index][kept])
            else:
                i, j = similar_pair(vectors[index][kept], self.mode, generator)
            chosen.append((index, [kept[i], kept[j]]))
        similarity = [float(np.dot(*vectors[index][pair])) for index, pair in chosen]
        difference = [float(abs(np.diff(lengths[index][pair])[0])) for index, pair in chosen]
        known = self.vectors in candidates.annotations
        lines = list(_two_responses(candidates, chosen, self.vectors).lines())
        for line, cosine, characters in zip(lines, similarity, difference, strict=True):
            line["length_difference"] = characters
            # 'random' and 'length' choose responses without vectors too.
            if known and math.isfinite(cosine):
                line["similarity"] = cosine
        measures = {"length_difference": float(np.mean(difference))} if chosen else {}
        if known and np.isfinite(similarity).any():
            measures["similarity"] = float(np.nanmean(similarity))
        return Selection(lines, "candidates", +dropped, measures)


def _two_responses(
    candidates: Candidates, chosen: Sequence[tuple[int, list[int]]], vectors: str
) -> Candidates:
    """Returns candidates with two responses per prompt, with their annotations except the embeddings."""
    annotations = {}
    for name, found in candidates.annotations.items():
        if name != vectors:
            values = [
                found.values[i][np.ix_(pair, pair)]
                if found.kind == "preferences"
                else found.values[i][pair]
                for i, pair in chosen
            ]
            annotations[name] = dataclasses.replace(found, values=values)
    return Candidates(
        [candidates.prompts[i] for i, _ in chosen],
        [[candidates.responses[i][k] for k in pair] for i, pair in chosen],
        annotations,
        [candidates.fields[i] for i, _ in chosen],
        candidates.path,
    )


def _most_different(lengths: Float[np.ndarray, " responses"]) -> tuple[int, int]:
    first, second = np.triu_indices(len(lengths), 1)
    pair = int(np.argmax(np.abs(lengths[first] - lengths[second])))
    return int(first[pair]), int(second[pair])


def _nearest_to_centres(
    vectors: Float[np.ndarray, "responses width"], i: int, j: int
) -> tuple[int, int]:
    """Returns the sample nearest to each centre of 2-means, which starts from two samples."""
    centres = vectors[[i, j]]
    for _ in range(_LLOYD_STEPS):
        distances = np.linalg.norm(vectors[:, None] - centres, axis=2)
        nearest = np.argmin(distances, axis=1)
        centres = np.stack(
            [
                vectors[nearest == c].mean(axis=0) if (nearest == c).any() else centres[c]
                for c in (0, 1)
            ]
        )
    distances = np.linalg.norm(vectors[:, None] - centres, axis=2)
    one = int(np.argmin(distances[:, 0]))
    distances[one, 1] = np.inf
    other = int(np.argmin(distances[:, 1]))
    return min(one, other), max(one, other)
