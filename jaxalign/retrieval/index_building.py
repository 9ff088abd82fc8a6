"""Builds indexes: from vectors of items to their identifiers, with codebooks that are fitted or those of another index."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxalign.data.vocabularies import Vocabulary, vocabulary_from_spec
from jaxalign.errors import UserError
from jaxalign.retrieval.code_statistics import describe_codes, relative_error
from jaxalign.retrieval.identifier_vocabulary import (
    PIECES,
    identifier_texts,
    sentinel_blocks,
    with_identifiers,
)
from jaxalign.retrieval.identifiers import COARSE, assign, block_sizes
from jaxalign.retrieval.index_folder import (
    CENTROIDS,
    COMPONENTS,
    IDENTIFIERS,
    MEAN,
    VECTORS,
    VOCABULARY_FILE,
    Index,
    fingerprint,
)
from jaxalign.retrieval.item_features import features_for_more, get_features
from jaxalign.retrieval.items import ItemId, Items
from jaxalign.retrieval.quantizers import CODEBOOKS, Arrays, Quantizer, get_quantizer
from jaxalign.retrieval.residual_quantization import Codes, Vectors, check_vectors, kmeans, nearest


def build(
    items: Items,
    *,
    vocabulary: str,
    extra_ids: int = 0,
    features: str = "vector",
    components: int = 0,
    coarse: int = 16,
    levels: int = 2,
    codes: int = 16,
    counters: int = 0,
    quantizer: str = "kmeans",
    tokens: str = PIECES,
    shuffle: bool = False,
    seed: int = 0,
) -> Index:
    """Returns the index of items, without training records. Arguments and errors are those of `index.index`."""
    extended: Vocabulary
    texts = vocabulary_from_spec(vocabulary, extra_ids)
    source, fitted = get_features(features), get_quantizer(quantizer)
    where = f"{items.path} (features {features!r})"
    vectors = check_vectors(source.vectors(items), where, max(coarse, 1))
    arrays: dict[str, np.ndarray] = {}
    if components:
        arrays = _principal_components(vectors, components, where)
        vectors = _projected(vectors, arrays)
    if coarse:
        arrays[CENTROIDS] = kmeans(vectors, coarse, seed=seed)
    arrays |= fitted.fit(_remainders(vectors, arrays), levels, codes, seed=seed)
    parts = _parts(vectors, arrays, fitted)
    identifiers = assign(parts)
    if shuffle:
        identifiers = identifiers[np.random.default_rng(seed).permutation(len(identifiers))]
    groups = int(identifiers[:, -1].max()) + 1
    if counters and counters < groups:
        raise UserError(
            f"index.counters is {counters}, but {groups} items share their cluster and codes; give at least {groups}, more --codes or "
            "more --levels"
        )
    sizes = block_sizes(coarse, levels, codes, counters or groups)
    if tokens == PIECES:
        mark = fingerprint(items, identifiers)
        extended, blocks = with_identifiers(texts, sizes, VOCABULARY_FILE, mark)
    else:
        extended, blocks = texts, sentinel_blocks(texts, sizes)
    settings = {
        "features": features,
        "source": dict(source.identity()),
        "components": components,
        "quantizer": quantizer,
        "tokens": tokens,
        "shuffle": shuffle,
        "seed": seed,
    }
    statistics = describe_codes(identifiers, blocks)
    statistics["relative_error"] = relative_error(vectors, _decoded(parts, arrays, fitted))
    arrays |= {VECTORS: vectors, IDENTIFIERS: identifiers}
    return _with_texts(Index(items, blocks, arrays, extended, settings, statistics))


def extend(other: Index, items: Items, features: str = "") -> Index:
    """Returns an index of items by the clusters and codebooks of another one, whose items keep their identifiers.

    Args:
      other: the other index, which also says what the vectors are.
      items: the items.
      features: the source of the vectors, of the same kind as that of the other index; by default that one, unless it is a function.

    Raises:
      UserError: the vectors are of another kind or size, the counter has too few tokens for the new items, or the parts of the other
        index do not fit together.
    """
    settings = dict(other.settings)
    used, source = features_for_more(settings, features, f"the index {other.path}")
    _check_fitted(other)
    vectors = check_vectors(source.vectors(items), items.path, 1)
    arrays = {k: v for k, v in other.arrays.items() if k not in (VECTORS, IDENTIFIERS)}
    expected = arrays[MEAN].shape[-1] if MEAN in arrays else other.vectors.shape[1]
    if vectors.shape[1] != expected:
        raise UserError(
            f"the vectors of {items.path} have {vectors.shape[1]} numbers, and those of the index {other.path} {expected}; make them in "
            "the same way"
        )
    if MEAN in arrays:
        vectors = _projected(vectors, arrays)
    fitted = get_quantizer(str(settings.get("quantizer")))
    parts = _parts(vectors, arrays, fitted)
    before: dict[ItemId, int] = {item: row for row, item in enumerate(other.items.ids)}
    identifiers = np.zeros((len(items), other.identifiers.shape[1]), np.int32)
    old = [row for row, item in enumerate(items.ids) if item in before]
    new = [row for row, item in enumerate(items.ids) if item not in before]
    identifiers[old] = other.identifiers[[before[items.ids[row]] for row in old]]
    identifiers[new] = assign(parts[new], other.identifiers.tolist())
    statistics = describe_codes(identifiers, list(other.blocks))
    statistics["relative_error"] = relative_error(vectors, _decoded(parts, arrays, fitted))
    settings |= {"features": used, "source": dict(source.identity())}
    settings["codebooks_of"] = other.fingerprint
    arrays |= {VECTORS: vectors, IDENTIFIERS: identifiers}
    return _with_texts(Index(items, other.blocks, arrays, other.vocabulary, settings, statistics))


def _check_fitted(index: Index) -> None:
    """Refuses an index whose centroids, codebooks or components do not fit its identifiers and vectors.

    Raises:
      UserError: an array is missing, or has another shape.
    """
    size = index.vectors.shape[1]
    coarse = index.blocks[0].letter == COARSE
    levels = [block.size for block in index.blocks[coarse:-1]]
    wanted: dict[str, tuple[int | None, ...]] = {
        CODEBOOKS: (len(levels), levels[0] if levels else None, None)
    }
    if coarse:
        wanted[CENTROIDS] = (index.blocks[0].size, size)
    if MEAN in index.arrays or COMPONENTS in index.arrays:
        wanted |= {MEAN: (1, None), COMPONENTS: (size, None)}
    for name, shape in wanted.items():
        array = index.arrays.get(name)
        found = () if array is None else array.shape
        fits = len(found) == len(shape) and all(
            need in (None, n) for n, need in zip(found, shape, strict=True)
        )
        if not fits or len(set(levels)) > 1:
            raise UserError(
                f"the array {name} of the index {index.path} does not fit its identifiers and vectors; make the index again"
            )
    if MEAN in wanted and index.arrays[MEAN].shape[1] != index.arrays[COMPONENTS].shape[1]:
        raise UserError(f"mean and components of the index {index.path} have different lengths")


def _principal_components(vectors: Vectors, components: int, where: str) -> dict[str, np.ndarray]:
    """Returns the mean of the vectors and their principal components, as arrays of an index."""
    from sklearn.decomposition import PCA

    most = min(vectors.shape)
    if components > most:
        raise UserError(
            f"{where} has {len(vectors)} vectors of {vectors.shape[1]} numbers, which have at most {most} principal components; lower "
            "--components"
        )
    # Of equal vectors scikit-learn computes shares of a variance of 0, which nothing reads.
    with np.errstate(invalid="ignore"):
        fitted = PCA(components, svd_solver="full").fit(vectors)
    mean, axes = fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32)
    return {MEAN: mean[None], COMPONENTS: axes}


def _projected(vectors: Vectors, arrays: Arrays) -> Vectors:
    return ((vectors - arrays[MEAN]) @ arrays[COMPONENTS].T).astype(np.float32)


def _remainders(vectors: Vectors, arrays: Arrays) -> Vectors:
    """Returns what the clusters leave of the vectors."""
    if CENTROIDS not in arrays:
        return vectors
    return vectors - arrays[CENTROIDS][nearest(vectors, arrays[CENTROIDS])]


def _parts(vectors: Vectors, arrays: Arrays, quantizer: Quantizer) -> Codes:
    """Returns the cluster and the codes of every vector."""
    codes = quantizer.encode(arrays, _remainders(vectors, arrays))
    if CENTROIDS not in arrays:
        return codes
    return np.concatenate([nearest(vectors, arrays[CENTROIDS])[:, None], codes], axis=1)


def _decoded(parts: Codes, arrays: Arrays, quantizer: Quantizer) -> Vectors:
    """Returns the vectors that the identifiers stand for."""
    if CENTROIDS not in arrays:
        return quantizer.decode(arrays, parts)
    clusters = arrays[CENTROIDS][parts[:, 0]]
    return clusters + quantizer.decode(arrays, parts[:, 1:]) if parts.shape[1] > 1 else clusters


def _with_texts(index: Index) -> Index:
    """Returns the index with the identifiers as text in the lines of its items, whose vectors are in an array."""
    texts = identifier_texts(index.vocabulary, index.identifiers, index.blocks)
    lines = [
        {**{name: value for name, value in fields.items() if name != "vector"}, "identifier": text}
        for fields, text in zip(index.items.fields, texts, strict=True)
    ]
    return dataclasses.replace(index, items=dataclasses.replace(index.items, fields=lines))
