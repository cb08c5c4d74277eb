"""The main job on Fashion-MNIST, from nothing to the table of results; `make demo` runs it.

:mod:`preparation` says where the data and the weights come from. Everything made here goes into the
folder `demo`.
"""

from __future__ import annotations

import sys

from preparation import DEMO, command, extract, prepare

from data_cache.errors import HeadstartError


def main() -> int:
    """Run the demonstration; return the exit code."""
    cache = DEMO / "fashion.h5"
    try:
        prepare()
        if "--data-only" in sys.argv:
            return 0
        failed = extract(cache)
    except HeadstartError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return failed or command("train-head", str(cache), "--output", str(DEMO / "run"), "--overwrite")


if __name__ == "__main__":
    sys.exit(main())
