"""One server after the other, until somebody ends them or it is hopeless."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from . import _preflight
from ._console import log
from ._errors import StartError
from ._health import Health, HealthServer
from ._server import Server
from ._settings import Settings
from ._watch import Fault

_STEADY = 7.0  # seconds that a server has to be ready for earlier ends to be forgotten
_ATTEMPTS = 5  # servers in a row that do not
_LONGEST_PAUSE = 8.0  # seconds


def supervise(
    settings: Settings,
    stop: threading.Event,
    hurry: threading.Event,
    announce: Callable[[Server], None],
) -> None:
    """Keep a server running until `stop` is set.

    Args:
        hurry: ends it without waiting for requests under way.
        announce: called when the first one is ready.

    Raises:
        StartError: the first one does not start, or the last one has ended too soon once too often.
    """
    _preflight.check(settings)
    health = Health(settings)
    try:
        probes = HealthServer(settings, health)
    except OSError as error:
        raise _preflight.port_error(settings, "HEALTH_PORT", error) from None
    ends, first, fell = 0, True, 0.0
    try:
        while not stop.is_set():
            server = Server(settings, health)
            ready = float("inf")
            try:
                if not first:
                    _preflight.check_repository(settings)
                server.start()
                if not server.wait_ready(stop):
                    return
                ready = time.monotonic()
                health.up()
                if first:
                    announce(server)
                else:
                    _say(f"Triton is back after {ready - fell:.1f} s.")
                first = False
                if (fault := server.wait(stop)) is None:
                    return
            except (StartError, OSError, RuntimeError) as error:
                if first or stop.is_set():
                    raise StartError(str(error)) from error
                fault = Fault(what="tritonserver", reason="start", sentence=str(error))
            finally:
                fell = time.monotonic()
                server.close(hurry)
            ends = 0 if fell - ready > _STEADY else ends + 1
            health.down(fault.sentence)
            if ends > _ATTEMPTS:
                raise StartError(f"{fault.sentence} That was {ends} times in a row.")
            health.restarts[fault.what, fault.reason] += 1
            _say(f"{fault.sentence} Starting Triton again.")
            stop.wait(0.0 if ends <= 1 else min(2.0 ** (ends - 2), _LONGEST_PAUSE))
    finally:
        probes.shutdown()
        probes.server_close()


def _say(line: str) -> None:
    log(line)
