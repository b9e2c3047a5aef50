"""The errors of the build tool."""


class BuildError(Exception):
    """Weights that cannot be turned into a served model; the message is one sentence."""


def os_error_reason(error: OSError) -> str:
    """The reason of a full disk, a missing permission or a failing device, to begin a sentence."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
