"""Where a source is: a bucket, an https address, or a folder. Each is read in small steps.

fsspec reads buckets and addresses. It is imported when a store is opened, as it and its libraries
take 40 MB that a server without a source does not need. Every step is bounded in time.
"""

from __future__ import annotations

import errno
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from .._source_url import safe_url
from ._errors import SourceError, refused

CONNECT_SECONDS = 5.0
READ_SECONDS = 15.0  # without a byte
_STEP_SECONDS = 60.0  # for one step of a bucket
_STEP_BYTES = 4 << 20
_MOST_REDIRECTS = 3
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses worth another attempt


class Store(Protocol):
    """The place of a source."""

    resumes: bool  # whether a file can be read from any of its bytes on

    def steps(self, name: str, offset: int, most: int) -> Iterator[bytes]:
        """Read an object from a byte on, in steps, until it ends or `most` bytes were read.

        Raises:
            SourceError: it cannot be read.
        """


def open_store(url: str) -> Store:
    """The store at an address that has no fault.

    Raises:
        SourceError: what reads such an address is not installed.
    """
    if "://" not in url:
        return FolderStore(Path(url))
    try:
        return BucketStore(url) if url.startswith("s3://") else WebStore(url)
    except ImportError as error:
        raise SourceError(f"{safe_url(url)} needs the package {error.name}.") from None


class FolderStore:
    """A folder of this machine, or of a file server that is mounted."""

    resumes = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def steps(self, name: str, offset: int, most: int) -> Iterator[bytes]:
        try:
            root = self._folder.resolve(strict=True)
            path = (root / name).resolve(strict=True)
            if not path.is_relative_to(root) or not path.is_file():
                raise refused(f"{name} leads out of {self._folder}, or is no file.")
            with path.open("rb") as file:
                file.seek(offset)
                while most > 0 and (data := file.read(min(most, _STEP_BYTES))):
                    most -= len(data)
                    yield data
        except OSError as error:
            missing = isinstance(error, (FileNotFoundError, PermissionError))
            reason = error.strerror or type(error).__name__
            sentence = f"{self._folder / name} cannot be read: {reason}."
            raise SourceError(sentence, is_temporary=not missing) from None
        except RuntimeError:  # links in a circle, before Python 3.13
            raise SourceError(f"{self._folder / name} cannot be read: too many links.") from None


class BucketStore:
    """A bucket, by s3fs, with the credentials of the environment and of AWS's files."""

    resumes = True

    def __init__(self, url: str) -> None:
        s3fs = importlib.import_module("s3fs")
        _quieten("aiobotocore", "aiohttp", "asyncio", "botocore", "s3fs", "fsspec")
        self._place = url.removeprefix("s3://").rstrip("/")
        self._fs: Any = s3fs.S3FileSystem(
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "retries": {"total_max_attempts": 2, "mode": "standard"},
            },
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        self._fs.retries = 1  # we repeat ourselves

    def steps(self, name: str, offset: int, most: int) -> Iterator[bytes]:
        path, end = f"{self._place}/{name}", offset + most
        while offset < end:
            wanted = min(end - offset, _STEP_BYTES)
            try:
                # `timeout` is that of fsspec's `sync`: a server that sends a byte now and then
                # would escape the others.
                data = self._fs.cat_file(
                    path, start=offset, end=offset + wanted, timeout=_STEP_SECONDS
                )
            except Exception as error:  # of four libraries, without a common class
                if offset and getattr(error, "errno", None) == errno.EINVAL:
                    return  # the object ends here
                raise _error(error, f"s3://{path}") from None
            yield data
            offset += len(data)
            if len(data) < wanted:
                return


class WebStore:
    """An https address, by fsspec's aiohttp, with the certificates of the system.

    SSL_CERT_FILE names others.
    """

    resumes = False

    def __init__(self, url: str) -> None:
        aiohttp = importlib.import_module("aiohttp")
        http = importlib.import_module("fsspec.implementations.http")
        _quieten("aiohttp", "asyncio", "fsspec")
        self._url = url.rstrip("/")
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_check_redirect)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
        )
        self._fs: Any = http.HTTPFileSystem(
            client_kwargs={"timeout": timeout, "trace_configs": [trace], "trust_env": True},
            max_redirects=_MOST_REDIRECTS,
            skip_instance_cache=True,
        )

    def steps(self, name: str, offset: int, most: int) -> Iterator[bytes]:
        url = f"{self._url}/{name}"
        try:
            # With a size and no blocks, fsspec streams, and does not ask for the size before.
            with self._fs.open(url, "rb", block_size=0, size=most) as file:
                while most > 0 and (data := file.read(min(most, _STEP_BYTES))):
                    most -= len(data)
                    yield data
        except SourceError:
            raise
        except Exception as error:
            raise _error(error, safe_url(url)) from None


async def _check_redirect(session: Any, context: Any, params: Any) -> None:
    target = params.response.headers.get("Location", "")
    if urlsplit(target).scheme not in ("", "https"):
        raise SourceError("The source leads to an address without https, which is not allowed.")


def _quieten(*names: str) -> None:
    """Keep libraries from writing to standard error: their errors are raised as well."""
    for name in names:
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def _error(error: Exception, place: str) -> SourceError:
    """The sentence to an error of fsspec, s3fs, botocore or aiohttp."""
    if isinstance(error, SourceError):
        return error
    text = safe_url(" ".join(str(error).split()))[:300]
    status = getattr(error, "status", None)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, FileNotFoundError):
        return SourceError(f"{place} is not there: {text.rstrip('.')}.")
    if isinstance(error, PermissionError) or status in (401, 403):
        return SourceError(f"{place} may not be read with these credentials: {text.rstrip('.')}.")
    if isinstance(status, int):
        sentence = f"{place} cannot be read: HTTP status {status}."
        return SourceError(sentence, is_temporary=status in _TEMPORARY)
    wrong = kinds & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
    untrusted = "CERTIFICATE_VERIFY_FAILED" in text
    permanent = bool(wrong or untrusted or kinds & {"ValueError", "TooManyRedirects"})
    reason = text.rstrip(".") or type(error).__name__
    return SourceError(f"{place} cannot be read: {reason}.", is_temporary=not permanent)
