class StartError(Exception):
    """The server cannot be started; the message is one sentence that says why, or what to do."""
