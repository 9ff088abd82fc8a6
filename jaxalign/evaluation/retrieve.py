"""Implements `jaxalign retrieve`: queries in, ranked items out, and how good the ranking is beside a lexical index and two towers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign import files
from jaxalign.data.encoding import TextEncoder
from jaxalign.errors import UserError, require_range
from jaxalign.evaluation.results import finite_json
from jaxalign.evaluation.statistics import LEAST, Estimate, bootstrap_mean
from jaxalign.evaluation.tables import format_interval
from jaxalign.inference.encoders import encoder_of
from jaxalign.interop.opening import open_run
from jaxalign.retrieval import recall
from jaxalign.retrieval.identifier_search import require_vocabulary, search
from jaxalign.retrieval.identifiers import COARSE
from jaxalign.retrieval.index import check_query, seen_queries
from jaxalign.retrieval.index_folder import Index, read_index
from jaxalign.retrieval.items import Queries, read_queries
from jaxalign.retrieval.lexical import LexicalIndex
from jaxalign.retrieval.two_tower_training import TwoTowerSettings, fit_towers
from jaxalign.runs.folder import TrainedNetwork

GENERATIVE, LEXICAL, TWO_TOWER = "generative", "tf_idf", "two_tower"


def retrieve(
    checkpoint: str,
    index: str,
    input: str,
    output: str,
    *,
    num_beams: int = 20,
    top: int = 10,
    constrained: bool = True,
    renormalize: bool = False,
    batch_size: int = 32,
    max_input_length: int = 0,
    long_prompts: str = "",
    step: int | str | None = None,
    two_tower_steps: int = 500,
    two_tower_start: str = "",
    bootstrap_samples: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Ranks items for queries by the identifiers that a policy writes.

    Args:
      checkpoint: the run folder or checkpoint of a policy that was trained on the index.
      index: the folder of the index.
      input: JSON Lines with `query`, and `item` where the right item is known; a list of queries is allowed.
      output: JSON Lines; each line has `query`, `item` if it is known, `items` (ids, best first), `identifiers`, `log_probs` (nats), and
        the items of the baselines under `tf_idf` and `two_tower`. OUTPUT.metrics.json has settings and measures.
      num_beams: beams of the search; the first token of an identifier is decided among them.
      top: items of a query.
      constrained: obey the trie of the index, so that every result is an item.
      renormalize: rank by probabilities among the tokens that the trie allows.
      batch_size: queries decoded together.
      max_input_length, long_prompts: as for `jaxalign generate`; by default those of the run.
      step: a step number, `best` or `latest`; by default the best if one was kept, else the latest.
      two_tower_steps: updates of the baseline of two towers; 0 leaves it out.
      two_tower_start: a run folder whose policy's encoder the query tower starts from; random parameters by default.
      bootstrap_samples: resamples of queries for the intervals.
      seed: seed of the baseline and of the resampling.
      overwrite: replace an existing output.

    Returns:
      `output`, `queries`, `measures` (method -> name -> mean, low, high, count; empty without right items), `validity` and `report`.

    Raises:
      UserError: malformed queries, an index that the run was not trained on, or an output that exists.
    """
    require_range("retrieve", "[1, inf)", num_beams=num_beams, top=top, batch_size=batch_size)
    require_range("retrieve", "[0, inf)", two_tower_steps=two_tower_steps, seed=seed)
    require_range("retrieve", "[0, inf)", bootstrap_samples=bootstrap_samples)
    require_range("retrieve", "[0, inf)", max_input_length=max_input_length)
    if top > num_beams:
        raise UserError(
            f"retrieve.top is {top} and retrieve.num_beams {num_beams}: a search returns at most as many items as beams"
        )
    path = Path(output).expanduser()
    if path.resolve() == Path(input).expanduser().resolve():
        raise UserError(f"--output is the input {input}; give another file")
    if path.is_dir():
        raise UserError(f"{output} is a folder; --output is a file")
    if path.exists() and not overwrite:
        raise UserError(f"{output} exists already; choose another --output, or --overwrite")
    queries = read_queries(input, need_items=False)
    opened, run = read_index(index), open_run(checkpoint, step)
    require_vocabulary(run, opened)
    right = right_items(queries, opened)
    encoder = encoder_of(
        run, max_input_length=max_input_length, long_prompts=long_prompts, max_target_length=2
    )
    tokens = _encode(queries, encoder, opened)
    files.make_writable_folder(path.parent, "--output's folder")
    trained = run.policy()
    training = Training.of(opened)
    fits = bool(training.queries and two_tower_steps)
    start = _start(two_tower_start, trained) if fits else None
    found = search(
        trained.network,
        trained.params,
        tokens,
        opened,
        num_beams=num_beams,
        listed=top,
        batch_size=batch_size,
        constrained=constrained,
        renormalize=renormalize,
    )
    ranked = {GENERATIVE: found.ranked}
    if training.queries:
        lexical = LexicalIndex(training.queries, training.items, len(opened.items))
        ranked[LEXICAL] = lexical.ranked(queries.texts, top)
    if fits:
        towers = fit_towers(
            trained.network,
            encoder.prompts(training.queries).tokens,
            training.items,
            opened.vectors,
            TwoTowerSettings(steps=two_tower_steps),
            seed=seed,
            start=start,
        )
        ranked[TWO_TOWER] = towers.ranked(tokens, opened.vectors, top)
    _write_lines(path, queries, opened, ranked, found.log_probs)
    measures = measure(ranked, right, opened, samples=bootstrap_samples, seed=seed)
    seen = seen_queries(queries.texts, opened.training)
    settings = {
        "run_id": run.description.run_id,
        "step": run.step,
        "index": opened.fingerprint,
        "num_beams": num_beams,
        "constrained": constrained,
        "renormalize": renormalize,
        "two_tower_steps": two_tower_steps,
        "seed": seed,
    }
    numbers = {
        method: {name: estimate.to_dict() for name, estimate in found.items()}
        for method, found in measures.items()
    }
    content = {
        "settings": settings,
        "validity": found.validity,
        "queries_of_training": seen,
        "measures": numbers,
    }
    files.write_text(
        path.with_name(f"{path.name}.metrics.json"), json.dumps(finite_json(content), indent=1)
    )
    report = describe(measures, len(queries), found.validity, str(path), seen)
    return {
        "output": str(path),
        "queries": len(queries),
        "measures": numbers,
        "validity": found.validity,
        "report": report,
    }


def _start(path: str, trained: TrainedNetwork) -> Any:
    """Returns the parameters that the query tower starts from; None for random ones."""
    if not path:
        return None
    start = open_run(path).policy()
    if start.network.description() != trained.network.description():
        raise UserError(
            f"retrieve.two_tower_start {path} has another network than {trained.run.folder}; give a run with the same one"
        )
    return start.params


class Training(NamedTuple):
    """The training queries of an index, and the row of the item of each."""

    queries: list[str]
    items: list[int]

    @classmethod
    def of(cls, index: Index) -> Training:
        """Returns those of an index whose items it still has."""
        rows = {item: row for row, item in enumerate(index.items.ids)}
        kept = [record for record in index.training if record.get("item") in rows]
        return cls([str(record["prompt"]) for record in kept], [rows[r["item"]] for r in kept])


def right_items(queries: Queries, index: Index) -> np.ndarray | None:
    """Returns the row of the right item of every query; None if no query names one.

    Raises:
      UserError: only some queries name one, or an item is not in the index.
    """
    known = [item is not None for item in queries.items]
    if not any(known):
        return None
    if not all(known):
        raise UserError(
            f'{queries.path}: the query {queries.texts[known.index(False)][:60]!r} has no "item", and others have; give all or none'
        )
    rows = {item: row for row, item in enumerate(index.items.ids)}
    for text, item in zip(queries.texts, queries.items, strict=True):
        if item not in rows:
            raise UserError(
                f"{queries.path}: the query {text[:60]!r} is for the item {item!r}, which is not in the index {index.path}"
            )
    return np.array([rows[item] for item in queries.items if item is not None])


def _encode(queries: Queries, encoder: TextEncoder, index: Index) -> list[list[int]]:
    encoded = encoder.prompts(queries.texts)
    cut = encoder.describe_cut(encoded)
    if cut:
        print(cut, file=sys.stderr)
    for text, tokens in zip(queries.texts, encoded.tokens, strict=True):
        check_query(text, tokens, index, queries.path)
    return encoded.tokens


def measure(
    ranked: Mapping[str, np.ndarray],
    right: np.ndarray | None,
    index: Index,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """Returns the measures of every method, with intervals that resample queries; nothing if the right items are not known.

    Recall at k is measured if k items are listed, or all that there are.
    """
    if right is None:
        return {}
    found = {}
    for method, listed in ranked.items():
        values = recall.per_query(listed, right)
        if listed.shape[1] < len(index.items):
            for k in recall.AT:
                if k > listed.shape[1]:
                    del values[f"R@{k}"]
        if index.blocks[0].letter == COARSE:
            values |= recall.cluster_recall(listed, right, index.identifiers[:, 0])
        found[method] = {
            name: bootstrap_mean(each, samples=samples, seed=seed) for name, each in values.items()
        }
    return found


def describe(
    measures: Mapping[str, Mapping[str, Estimate]],
    queries: int,
    validity: float,
    output: str,
    seen: int,
) -> str:
    """Returns a table of the measures in words."""
    lines = [f"{output} holds {queries} queries; identifiers of the index: {validity:.1%}"]
    if measures:
        if queries < LEAST:
            lines.append(f"no intervals with fewer than {LEAST} queries")
        names = list(next(iter(measures.values())))
        lines.append("".join([f"{'':12}", *(f"{name:>24}" for name in names)]))
    for method, found in measures.items():
        cells = [format_interval(each.mean, each.low, each.high) for each in found.values()]
        lines.append("".join([f"{method:12}", *(f"{cell:>24}" for cell in cells)]))
    if measures and seen:
        lines.append(
            f"warning: {seen} of {queries} queries are training queries of the index; the measures do not tell how well unseen queries do"
        )
    return "\n".join(lines)


def _write_lines(
    path: Path,
    queries: Queries,
    index: Index,
    ranked: Mapping[str, np.ndarray],
    log_probs: np.ndarray,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for row, (text, item) in enumerate(zip(queries.texts, queries.items, strict=True)):
        places = ranked[GENERATIVE][row]
        line: dict[str, Any] = {"query": text, **({} if item is None else {"item": item})}
        line["items"] = _ids(places, index)
        line["identifiers"] = [index.items.fields[p]["identifier"] for p in places if p >= 0]
        line["log_probs"] = [float(p) for p in log_probs[row][places >= 0]]
        for method in (LEXICAL, TWO_TOWER):
            if method in ranked:
                line[method] = _ids(ranked[method][row], index)
        lines.append(json.dumps(line, ensure_ascii=False))
    files.write_text(path, "\n".join(lines) + "\n")


def _ids(places: Sequence[int], index: Index) -> list[Any]:
    return [index.items.ids[place] for place in places if place >= 0]
