"""`yolov5-client batch`: find objects in many photos, on one machine or a Ray cluster."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .._errors import InvalidRequestError
from . import OK, SOME_FAILED, UsageError, connect, model_flag, read_headers, tls_of
from ._run import given_parameters
from .detect import add_parameter_flags, add_retry_flag, whole_number
from .status import PIXEL, require_ready

if TYPE_CHECKING:
    from .._batch.plan import Plan
    from .._batch.rows import Counts
    from .._batch.settings import BatchSettings


def add_parser(commands: Any, connection: argparse.ArgumentParser) -> None:
    batch = commands.add_parser(
        "batch",
        parents=[connection],
        help="find objects in many photos, on one machine or a Ray cluster",
        description="Without --server the job starts a server of its own on each node.",
    )
    batch.set_defaults(run=run, server=None)
    batch.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="a folder, glob, s3:// or other address, a list (.txt, .csv, .jsonl), a table"
        " (.parquet) or an archive (.tar)",
    )
    batch.add_argument(
        "destination",
        metavar="DESTINATION",
        help="folder for the results, local or s3://; a job that it holds already is continued",
    )
    model_flag(batch)
    batch.add_argument(
        "--health", metavar="ADDRESS", help="the launcher's health port, which tells the version"
    )
    add_parameter_flags(batch.add_argument_group("detections (default: the server's settings)"))
    job = batch.add_argument_group("the job")
    job.add_argument(
        "--address",
        metavar="ADDRESS",
        help="a Ray cluster, such as `auto` on one of its nodes; without it this machine alone",
    )
    job.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that ask (0: one for a node)",
    )
    job.add_argument(
        "--in-flight",
        type=whole_number,
        default=32,
        metavar="N",
        help="concurrent requests of a worker (%(default)s)",
    )
    job.add_argument(
        "--part-size",
        type=whole_number,
        default=1000,
        metavar="N",
        help="photos in one file of results (%(default)s)",
    )
    job.add_argument(
        "--server-flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="for the servers that the job starts, such as --server-flag=--precision=fp32",
    )
    job.add_argument("--coco", action="store_true", help="also write the results as COCO")
    add_retry_flag(job)


def run(options: argparse.Namespace) -> int:
    """Run the job and return its exit status.

    Raises:
        UsageError: a flag or a source cannot be used, or a package is missing.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the next default
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        from ray.exceptions import RayError

        from .._batch.job import run as run_job
        from .._batch.plan import PlanError
        from .._batch.sources import SourceError
    except ImportError as error:
        raise UsageError(
            f"{error.name} is missing; pip install 'yolov5-client[batch]' brings it."
        ) from None
    settings = _settings(options)
    if settings.server is not None:
        _check(options, settings)
    progress = _Progress()
    try:
        total = run_job(settings, progress.start, progress.add)
    except (PlanError, SourceError) as error:
        raise UsageError(str(error)) from None
    except RayError as error:
        progress.close()
        print(f"error: {_sentence(error)}", file=sys.stderr)
        print("The same command continues the job.", file=sys.stderr)
        return SOME_FAILED
    progress.close()
    _print_summary(total)
    return SOME_FAILED if total.errors else OK


def _settings(options: argparse.Namespace) -> BatchSettings:
    from .._batch.settings import BatchSettings

    try:
        return BatchSettings(
            sources=tuple(options.source),
            destination=options.destination,
            server=options.server,
            server_flags=tuple(options.server_flag),
            model=options.model,
            health=options.health,
            parameters=given_parameters(options),
            part_size=options.part_size,
            workers=options.workers,
            in_flight=options.in_flight,
            retry_for=options.retry_for,
            timeout=options.timeout,
            headers=read_headers(options.header),
            tls=tls_of(options),
            cluster=options.address,
            coco=options.coco,
        )
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None


def _check(options: argparse.Namespace, settings: BatchSettings) -> None:
    """Let the server refuse the parameters before ten million photos are refused one by one."""
    with connect(options) as client:
        require_ready(client)
        try:
            client.detect(PIXEL, **settings.parameters)
        except InvalidRequestError as error:
            raise UsageError(str(error)) from None


class _Progress:
    """A bar of the photos, with their rate and the time that is left."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def start(self, plan: Plan, done: int) -> None:
        if done:
            print(f"Continuing: {done} of {plan.parts} parts are done.", file=sys.stderr)
        self._bar = tqdm(total=plan.photos, unit=" photos", smoothing=0.05)

    def add(self, counts: Counts) -> None:
        if self._bar is not None:
            self._bar.update(counts.photos)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _print_summary(total: Counts) -> None:
    print(f"{total.photos} photos, {total.classes.total()} detections")
    for label, count in total.classes.most_common():
        print(f"  {count:>10} {label}")
    if total.errors:
        print(f"{total.errors.total()} photos with an error")
        for reason, count in total.errors.most_common():
            print(f"  {count:>10} {reason}")


def _sentence(error: Exception) -> str:
    """Return what a worker said, without what Ray puts around it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return str(cause).strip().splitlines()[0]
    return str(error).strip().splitlines()[-1]
