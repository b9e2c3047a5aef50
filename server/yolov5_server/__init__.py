"""A real Triton server without Docker: the `tritonserver` binary of the `nvidia-pytriton` wheel."""

from ._errors import StartError
from ._parent import exit_with_make
from ._server import Server
from ._settings import Settings
from ._startup import on_signals

__all__ = ["Server", "Settings", "StartError", "exit_with_make", "on_signals"]
