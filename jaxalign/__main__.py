"""Runs `python -m jaxalign COMMAND` as `jaxalign COMMAND`."""

import sys

from jaxalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
