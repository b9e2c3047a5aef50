class BuildError(Exception):
    """The weights cannot be turned into a served model; the message is one sentence saying why."""


def os_error_reason(error: OSError) -> str:
    """What the system refused, for the beginning of a sentence: a full disk, a folder without
    permission, a device that fails."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
