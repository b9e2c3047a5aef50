class BuildError(Exception):
    """The weights cannot be turned into a served model; the message is one sentence saying why."""
