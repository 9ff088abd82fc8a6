"""`python -m jaxalign.train --gin_file=...`, as users of T5X type it, is `jaxalign train --gin_file=...`."""

import sys

from jaxalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
