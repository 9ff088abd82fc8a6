"""From each data file to two trained steps without editing: `jaxalign inspect`, then `jaxalign train` with the gin file it wrote.

Run as a program in an empty folder, `python inspect_and_train.py [--records=N] FILE ...`; one line of JSON a file says what came out.
With --records, files that have more are inspected whole and trained on N of their records and the five longest.
"""

import contextlib
import io
import json
import sys
import time
from pathlib import Path

from jaxalign.cli.main import main


def run(file: str, records: int) -> dict[str, object]:
    name = Path(file).name
    started = time.time()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(["inspect", file, "--model=tiny", "--output=suggested.gin", "--examples=1"])
    result = {"file": name, "inspect": code, "train": None}
    written = Path("suggested.gin")
    if code or not written.exists():
        return result | {"said": printed.getvalue().splitlines()[-1]}
    text = written.read_text(encoding="utf-8")
    chosen = [line.split("/")[-1][:-5] for line in text.splitlines() if "objectives/" in line]
    # Two steps, and checkpoints at the end only; the rest is as it was written.
    arguments = [
        "train",
        "--gin_file=suggested.gin",
        f"--gin.MODEL_DIR='runs/{name}'",
        "--gin.TRAIN_STEPS=2",
        "--gin.EVAL_PERIOD=0",
    ]
    few = fewer(file, records)
    if few is not None:
        # Among few records the longest weigh more.
        arguments += [
            f"--gin.TRAIN_FILE={few!r}",
            f"--gin.CACHE_DIR='runs/cache/few_{name}'",
            "--gin.task_data.TaskData.max_rejected_fraction=0.5",
        ]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main(arguments)
        except Exception as error:  # a traceback is a result too
            code = f"{type(error).__name__}: {error}"
    written.unlink()
    said = printed.getvalue().splitlines()
    result |= {
        "train": code,
        "objective": chosen[-1],
        "options": [line.strip() for line in text.splitlines() if line.startswith("  ")][2:],
        "lengths": next(line for line in text.splitlines() if line.startswith("TASK_FEATURE")),
        "seconds": round(time.time() - started),
    }
    return result | ({"said": said[-1]} if code else {})


def fewer(file: str, records: int) -> str | None:
    """A file with some of the records and the longest ones; None where there are not more, or the file is not JSON Lines."""
    if not records or not file.endswith(".jsonl"):
        return None
    lines = Path(file).read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) <= records + 5:
        return None
    kept = {
        *range(0, len(lines), len(lines) // records),
        *sorted(range(len(lines)), key=lambda i: -len(lines[i]))[:5],
    }
    few = Path(f"few_{Path(file).name}").absolute()
    few.write_text("".join(lines[i] for i in sorted(kept)), encoding="utf-8")
    return str(few)


if __name__ == "__main__":
    few = next((int(a.split("=")[1]) for a in sys.argv[1:] if a.startswith("--records=")), 0)
    for path in sys.argv[1:]:
        if not path.startswith("--"):
            print(json.dumps(run(path, few)), flush=True)
