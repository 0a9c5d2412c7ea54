"""Saying an outage once, and its end once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from qis_edge.terminal import duration


class Outage:
    """What a link, or whatever else comes and goes, tells the log about being down.

    The same cause is said once per outage, however often it is met; a cause that is new
    in this outage is said too. When it is over, that is said once, with how long it took.
    """

    #: Causes remembered per outage, so that a medium that words each failure anew
    #: fills neither the memory nor the log.
    MAX_CAUSES = 8

    def __init__(
        self, logger: logging.Logger, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._name = name
        self._clock = clock
        self._since: float | None = None
        self._causes: set[str] = set()

    @property
    def lasting(self) -> bool:
        """Whether it is going on."""
        return self._since is not None

    def cause(self, text: str, hint: str | None = None) -> None:
        """It is down, for this reason."""
        if self._since is None:
            self._since = self._clock()
        if text in self._causes or len(self._causes) >= self.MAX_CAUSES:
            return
        self._causes.add(text)
        more = f" ({hint})" if hint else ""
        self._logger.warning("%s: %s%s; trying again until it works", self._name, text, more)

    def over(self, text: str) -> None:
        """It is up again, or for the first time."""
        if self._since is None:
            self._logger.info("%s: %s", self._name, text)
        else:
            took = duration(round(self._clock() - self._since))
            self._logger.info("%s: %s after %s without", self._name, text, took)
        self._since = None
        self._causes.clear()
