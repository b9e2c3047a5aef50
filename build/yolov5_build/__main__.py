"""`python -m yolov5_build`, which `make model` runs."""

import sys

from .cli import run

if __name__ == "__main__":
    sys.exit(run())
