"""A thread of one's own for what blocks.

SQLite on an SD card can take a second to sync: never on the event loop. All calls of one
worker run one after the other, in the order in which they were made.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.terminal import duration

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds without a failure after which a disk's trouble is taken to be over.
_OVER = 60.0


class Worker:
    """One thread, one queue.

    The thread is a daemon: a call that never returns (a driver that hangs) does not keep
    the program from ending.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` there and wait for it. It runs even if the caller is cancelled,
        who then does not know the result; the next call still comes after it.

        :raises RuntimeError: the worker was closed.
        """
        if self._closed:
            raise RuntimeError(f"the worker {self._name} is closed")
        job: Future[T] = Future()
        job.set_running_or_notify_cancel()  # from here on it cannot be cancelled
        self._jobs.put((job, lambda: function(*args, **kwargs)))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        return await asyncio.wrap_future(job)

    def _run(self) -> None:
        while (next_one := self._jobs.get()) is not None:
            job, work = next_one
            try:
                job.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is its caller's, whatever it is
                job.set_exception(error)
            del next_one, job, work  # or the last result would live until the next call

    def close(self, patience: float | None = None) -> None:
        """End the thread once what is queued is done. Idempotent.

        :param patience: how many seconds to wait for that; ``None``: as long as it takes.
        """
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(patience)


class Disk(Worker):
    """The worker of a store. What keeps it from writing is said once, and when it is over.

    A full or a read-only disk may mend itself while we wait: whoever calls catches
    :class:`StoreError` and tries again. :class:`StoreCorrupt` is for nobody to catch.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        #: What is wrong now, for ``status``.
        self.trouble: str | None = None
        self._failing: set[object] = set()
        self._failed_at = self._failing_since = 0.0

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As every worker. :raises StoreError: what the store says."""
        try:
            result = await super().__call__(function, *args, **kwargs)
        except StoreCorrupt:
            raise
        except StoreError as error:
            self._failed(function, error)
            raise
        if self._failing:
            self._worked(function)
        return result

    def _failed(self, function: object, error: StoreError) -> None:
        if self.trouble is None:
            self._failing_since = time.monotonic()
            log.error("%s%s", error, f" ({error.hint})" if error.hint else "")
        self.trouble = str(error)
        self._failing.add(function)
        self._failed_at = time.monotonic()

    def _worked(self, function: object) -> None:
        """That others work says nothing: a full disk can be read."""
        self._failing.discard(function)
        if not self._failing or time.monotonic() > self._failed_at + _OVER:
            self._failing.clear()
            self.trouble = None
            took = duration(round(time.monotonic() - self._failing_since))
            log.info("the disk works again after %s without", took)
