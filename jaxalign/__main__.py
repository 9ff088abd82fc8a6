"""`python -m jaxalign COMMAND` is `jaxalign COMMAND`."""

import sys

from jaxalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
