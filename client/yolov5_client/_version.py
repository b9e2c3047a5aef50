"""The version of the client and of the project: stated here alone."""

__version__ = "0.2.0"
