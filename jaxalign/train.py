"""Runs `python -m jaxalign.train --gin_file=...`, the form that T5X users know, as `jaxalign train --gin_file=...`."""

import sys

from jaxalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
