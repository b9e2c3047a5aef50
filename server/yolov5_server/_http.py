"""HTTP to a server on this machine, past any proxy that the environment names."""

from __future__ import annotations

import urllib.request

open_directly = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
"""As `urllib.request.urlopen`."""
