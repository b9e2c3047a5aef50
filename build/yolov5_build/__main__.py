"""`python -m yolov5_build`, which `make model` runs."""

import sys

from ._manage import manage
from ._options import manages, parse


def main() -> int:
    options = parse()
    if manages(options):
        return manage(options)
    from .cli import run  # takes seconds, of which the above have no need

    return run()


if __name__ == "__main__":
    sys.exit(main())
