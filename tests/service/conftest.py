"""The fixtures of the command line's tests."""

from tests.cli.conftest import console, ready, site

__all__ = ["console", "ready", "site"]
