"""The address of a model source: s3://bucket/prefix, https://host/path, or a folder."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

_SCHEMES = ("s3", "https")
_USER = re.compile(r"//[^/@\s]*@")


def url_fault(url: str) -> str | None:
    """What is wrong with an address, to follow its name in a sentence; None if nothing is."""
    allowed = "s3://bucket/prefix, https://host/path or a folder, without ? and #"
    if "://" not in url:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"is {safe_url(url)!r}; allowed: {allowed}"
    if parts.scheme not in _SCHEMES or not parts.netloc or parts.query or parts.fragment:
        return f"is {safe_url(url)!r}; allowed: {allowed}"
    if parts.scheme == "s3" and "@" in parts.netloc:
        return "has credentials in it; allowed: those of the environment and of AWS's files"
    return None


def safe_url(text: str) -> str:
    """An address, or a message with addresses, without the user's name and password."""
    return _USER.sub("//", text)


def source_key(url: str) -> str:
    """By what a source is known again: its address without credentials; a folder's full path."""
    return safe_url(url.rstrip("/")) if "://" in url else os.path.realpath(url)
