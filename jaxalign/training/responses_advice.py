"""What a user does if a task has another number of responses to a prompt than an objective needs, with every flag that it takes."""

from __future__ import annotations

# A cache holds the examples of one choice of files and groups.
_CACHE = "another --CACHE_DIR=..."
_PAIRS = f"give a file of pairs: --gin_file=tasks/jsonl_pairs.gin --TRAIN_FILE=... (and --VALIDATION_FILE=... if there is one) and {_CACHE}"


def join(responses: int) -> str:
    """Returns how the records of each prompt become examples of up to so many responses."""
    return f"join the records of each prompt: --gin.TaskData.responses_per_example={responses} and {_CACHE}"


def other_number(wanted: int, found: int, kind: str) -> str:
    """Returns what to do for an objective that needs exactly ``wanted`` responses, with a task of records of a kind that has ``found``."""
    if wanted == 1:
        return "train on the best response alone: --gin.TaskData.responses=best, or give a task of kind 'triplet' or 'seq2seq'"
    ranked = (
        _PAIRS
        if wanted == 2
        else f"give ranked records of {wanted} responses: --gin.TaskData.kind=ranked --TRAIN_FILE=... and {_CACHE}"
    )
    # Without feedback nobody knows which of the joined responses is better; pairs and ranked records cannot be split.
    if found == 1 and kind in ("triplet", "multi"):
        return f"{join(wanted)}; or {ranked}"
    return ranked
