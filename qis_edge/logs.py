"""Logs, for journald or a terminal: one line an event, to standard error."""

from __future__ import annotations

import logging
import sys

from qis_edge.terminal import harmless, is_journal

#: Priorities of syslog, which journald takes off the beginning of a line.
_SYSLOG = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class _Lines(logging.Formatter):
    """A journal has its own times; a terminal has not."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(message)s" if journal else "%(asctime)s %(levelname)s %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several with the same priority for a traceback."""
        lines = [harmless(line) for line in super().format(record).splitlines()]
        if not self._journal:
            return "\n".join(lines)
        priority = _SYSLOG.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in lines)


def set_up_logging(level: str) -> None:
    """Log to standard error from now on.

    :param level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(journal=is_journal(sys.stderr)))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
