"""Implements `jaxalign index`, which gives items identifiers that a policy can learn to write, and writes what it trains on."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.errors import UserError, require_one_of, require_range
from jaxalign.inference.rows import EOS
from jaxalign.retrieval.identifier_vocabulary import PIECES, TOKENS, holds_identifier_tokens
from jaxalign.retrieval.identifiers import MOST_LEVELS
from jaxalign.retrieval.index_building import build, extend
from jaxalign.retrieval.index_folder import (
    INDEX_FILE,
    ITEMS_FILE,
    TRAIN_FILE,
    VALIDATION_FILE,
    VOCABULARY_FILE,
    Index,
    read_index,
)
from jaxalign.retrieval.items import read_items, read_queries

_MOST_TOKENS = 1 << 20


def index(
    items: str,
    output: str,
    *,
    vocabulary: str = "",
    extra_ids: int = 0,
    features: str = "",
    components: int = 0,
    queries: str = "",
    pseudo_queries: str = "",
    validation_queries: str = "",
    coarse: int = 16,
    levels: int = 2,
    codes: int = 16,
    counters: int = 0,
    quantizer: str = "kmeans",
    tokens: str = PIECES,
    shuffle: bool = False,
    codebooks_of: str = "",
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Gives every item an identifier: a cluster, codes of what is left of its vector, and a counter.

    Args:
      items: JSON Lines, one item per line: `item` (a text or an integer), and what the features need: `vector`, `image`, `text` or `row`.
      output: the folder of the index.
      vocabulary: the SentencePiece model of the queries; the index gets a copy with tokens for the identifiers.
      extra_ids: the sentinels of the vocabulary; 100 for T5.
      features: the vectors of items: `vector` (of the line, the default), `array:FILE`, `pictures`, `embedding:RUN`, `sentence_encoder`,
        or `module:function` (docs/retrieval.md).
      components: the principal components of the vectors that are used; 0 for the vectors themselves.
      queries: JSON Lines with `query` and `item`, to train on.
      pseudo_queries: more of them, such as captions that a model wrote.
      validation_queries: JSON Lines with `query` and `item`, for the validation loss during training.
      coarse: clusters; 0 for identifiers without a cluster.
      levels: levels of residual codes; 0 for identifiers of cluster and counter.
      codes: codes of a level.
      counters: the tokens of the counter: at least the items of the largest group that shares its codes, which is the default. More give
        room for later items.
      quantizer: `kmeans`, or `rqvae` with settings such as `rqvae:latent=32,steps=1000`.
      tokens: `pieces` adds pieces to the vocabulary, `sentinels` writes identifiers with its sentinels.
      shuffle: exchange the identifiers between items at random: a control that takes their meaning away.
      codebooks_of: another index, whose features, clusters, codebooks and vocabulary are used. Its items keep their identifiers.
        `features` may name another file of the same kind, and must name the features if they are a function. The settings of clusters,
        codes and vocabulary come from it, and cannot be given beside it.
      seed: the seed of k-means, of the RQ-VAE and of the exchange.
      overwrite: replace an existing folder.

    Returns:
      `output`, `items`, `queries`, `vocab_size`, `statistics`, `fingerprint` and `report`, all of this in words.

    Raises:
      UserError: malformed items, queries or vectors, a vocabulary that cannot name the identifiers, or a folder that exists.
    """
    require_range("index", "[0, inf)", coarse=coarse, components=components, extra_ids=extra_ids)
    require_range("index", "[1, inf)", codes=codes)
    require_range("index", f"[0, {MOST_LEVELS}]", levels=levels)
    require_range("index", "[0, inf)", counters=counters, seed=seed)
    require_one_of("index", TOKENS, tokens=tokens)
    if not coarse and not levels:
        raise UserError(
            "index.coarse and index.levels are both 0; identifiers need clusters or codes"
        )
    if coarse + levels * codes + counters > _MOST_TOKENS:
        raise UserError(
            f"index.coarse, index.codes of {levels} levels and index.counters are {coarse + levels * codes + counters} tokens; at most "
            f"{_MOST_TOKENS} can be added to a vocabulary"
        )
    if bool(vocabulary) == bool(codebooks_of):
        raise UserError(
            "give --vocabulary, a SentencePiece model, or --codebooks_of, an index that has one"
        )
    codebooks: dict[str, Any] = {
        "extra_ids": extra_ids,
        "components": components,
        "coarse": coarse,
        "levels": levels,
        "codes": codes,
        "counters": counters,
        "quantizer": quantizer,
        "tokens": tokens,
        "shuffle": shuffle,
    }
    if codebooks_of:
        _refuse_other_codebooks(codebooks)
    _check_output(Path(output).expanduser(), overwrite)
    given = read_items(items)
    files.make_writable_folder(Path(output).expanduser().parent, "--output's folder")
    if codebooks_of:
        made = extend(read_index(codebooks_of), given, features)
    else:
        made = build(
            given, vocabulary=vocabulary, features=features or "vector", seed=seed, **codebooks
        )
    made = with_queries(made, [queries, pseudo_queries], [validation_queries])
    # Again, because another process may have written there since.
    _check_output(Path(output).expanduser(), overwrite)
    made.write(output)
    report = describe(made, output)
    return {
        "output": output,
        "items": len(given),
        "queries": len(made.training),
        "vocab_size": made.vocabulary.size,
        "statistics": made.statistics,
        "fingerprint": made.fingerprint,
        "report": report,
    }


def _refuse_other_codebooks(given: Mapping[str, Any]) -> None:
    """Refuses settings of `index` that another index's codebooks decide, unless they have their default."""
    defaults = inspect.signature(index).parameters
    for name, value in given.items():
        if value != defaults[name].default:
            raise UserError(
                f"--codebooks_of takes {name} from that index; leave --{name} out, or make an index of its own from --vocabulary"
            )


def _check_output(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that exists, unless it is an index that may be replaced."""
    if not folder.exists():
        return
    if not overwrite:
        raise UserError(f"{folder} exists already; choose another --output, or --overwrite")
    if not (folder / INDEX_FILE).is_file() or "blocks" not in untrusted.read_json_object(
        folder / INDEX_FILE
    ):
        raise UserError(f"{folder} is no index, so it is not replaced; choose another --output")
    known = {INDEX_FILE, ITEMS_FILE, TRAIN_FILE, VALIDATION_FILE, VOCABULARY_FILE}
    for path in sorted(folder.iterdir()):
        if path.is_dir() or (path.name not in known and path.suffix != ".npy"):
            raise UserError(
                f"{folder} also has {path.name!r}, which is no part of an index; move that, or choose another --output"
            )


def with_queries(index: Index, train: Sequence[str], validation: Sequence[str] = ()) -> Index:
    """Returns an index with records, query -> identifier, of files of queries. Repeated records are left out.

    Raises:
      UserError: a query is for an item that the index does not have, or holds a token of an identifier.
    """
    training, repeated = _records(index, train)
    held_out, _ = _records(index, validation)
    seen = seen_queries([str(each["prompt"]) for each in held_out], training)
    statistics = {
        **index.statistics,
        "items": len(index.items),
        "queries": len(training),
        "repeated_queries": repeated,
        "items_without_queries": len(index.items) - len({record["item"] for record in training}),
        "validation_queries": len(held_out),
        "validation_queries_of_training": seen,
    }
    return dataclasses.replace(
        index,
        training=training,
        validation=held_out,
        statistics=statistics,
    )


def seen_queries(queries: Sequence[str], training: Sequence[Mapping[str, Any]]) -> int:
    """Returns how many queries are among the training records, up to case: what is measured on them was seen in training."""
    known = {str(record["prompt"]).casefold() for record in training}
    return sum(query.casefold() in known for query in queries)


def _records(index: Index, paths: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """Returns the records of files of queries, and the number of repeated ones."""
    texts = {
        item: fields["identifier"]
        for item, fields in zip(index.items.ids, index.items.fields, strict=True)
    }
    records: dict[tuple[str, str], dict[str, Any]] = {}
    seen = 0
    for path in filter(None, paths):
        queries = read_queries(path, need_items=True)
        encoded = index.vocabulary.encode_batch(list(queries.texts))
        for query, item, tokens in zip(queries.texts, queries.items, encoded, strict=True):
            if item not in texts:
                raise UserError(
                    f"{path}: the query {query[:60]!r} is for the item {item!r}, which {index.items.path} does not have"
                )
            check_query(query, tokens, index, path)
            seen += 1
            record = {"prompt": query, "response": texts[item], "item": item}
            records.setdefault((query, texts[item]), record)
    return list(records.values()), seen - len(records)


def check_query(query: str, tokens: Sequence[int], index: Index, path: str) -> None:
    """Refuses a query of a file that has no tokens, or one of an identifier.

    Raises:
      UserError: it does so.
    """
    if not set(tokens) - {EOS}:
        raise UserError(
            f"{path}: the query {query[:60]!r} is empty to the vocabulary, which leaves out all its characters; remove the line"
        )
    if holds_identifier_tokens(tokens, index.blocks):
        raise UserError(
            f"{path}: the query {query[:60]!r} holds a token of an identifier, which would name an item; remove it from the text"
        )


def describe(index: Index, output: str) -> str:
    """Returns the statistics of an index in words, and how to train on it."""
    found = index.statistics
    lines = [
        f"{output} holds {found['items']} items; fingerprint {index.fingerprint}",
        f"before the counter {found['unique']:.1%} of the identifiers are unique; the largest group has {found['largest_group']} items; "
        f"the codes leave {found['relative_error']:.1%} of the squared distances from the mean",
    ]
    lines += [
        f"position {letter}: {codes['used']:.0%} of {codes['tokens']} tokens used, perplexity {codes['perplexity']:.1f}"
        for letter, codes in found["positions"].items()
    ]
    repeated = found["repeated_queries"]
    lines.append(
        f"{found['queries']} training queries"
        + (f", without {repeated} repeated ones" if repeated else "")
    )
    if found.get("validation_queries_of_training"):
        lines.append(
            f"warning: {found['validation_queries_of_training']} of {found['validation_queries']} validation queries are training queries "
            "too; their loss does not tell how well unseen queries do"
        )
    if found["queries"] and found["items_without_queries"]:
        lines.append(
            f"{found['items_without_queries']} items have no training query; a policy can hardly learn to write their identifiers"
        )
    if found["queries"]:
        spec = index.vocabulary.to_dict()
        validation = f" --VALIDATION_FILE={output}/{VALIDATION_FILE}" if index.validation else ""
        lines.append(
            f"train: --TRAIN_FILE={output}/{TRAIN_FILE}{validation} --VOCABULARY={output}/{VOCABULARY_FILE} "
            f"--EXTRA_IDS={spec['extra_ids']} with VOCAB_SIZE of at least {index.vocabulary.size}"
        )
    return "\n".join(lines)
