"""HTTP to a server on this machine, past any proxy that the environment names."""

from __future__ import annotations

import urllib.request

# Made once: from Python 3.12 on, an opener reads the certificates of all authorities.
open_directly = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
"""As `urllib.request.urlopen`."""
