"""Signatures, checked beside the event loop.

libsodium releases the interpreter's lock while it checks a signature, but each thread then
has to get it back, and waits for whoever holds it: two threads that check signatures beside a
busy event loop check no more than one. So where there is more than a handful to check, a
process of its own does it. It knows nothing and decides nothing: keys and signed bytes go in,
yes or no comes out. Where it cannot be had, or is no more, a thread does its work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from qis_edge.core.identity import KEY_SIZE, is_signed

log = logging.getLogger(__name__)

#: Fewer than so many are not worth the way to another process.
FEW = 16
#: Times that the process may end by itself before it is given up.
MOST_ENDS = 3

#: A public key, and a signature with the bytes that it is of.
Claim = tuple[bytes, bytes]


class Prover:
    """One helper process, begun when it is first needed.

    :param processors: how many this machine has; with one there is no helper.
    """

    def __init__(self, processors: int | None = None) -> None:
        self._helps = (processors or len(os.sched_getaffinity(0))) > 1
        self._ends = 0
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify")

    async def prove(self, claims: Sequence[Claim]) -> Sequence[bool]:
        """Whether each signature is good."""
        if not claims:
            return ()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._prove, claims)

    def _prove(self, claims: Sequence[Claim]) -> Sequence[bool]:
        if len(claims) >= FEW and self._helps:
            try:
                return self._ask(claims)
            except OSError as error:
                self._end()
                if self._helps:  # else it was closed meanwhile
                    log.warning("the process that verifies signatures ended (%s)", error)
                    self._ends += 1
                    self._helps = self._ends < MOST_ENDS
        return [is_signed(key, signed) for key, signed in claims]

    def _ask(self, claims: Sequence[Claim]) -> Sequence[bool]:
        """:raises OSError: there is no such process, or it answers wrongly."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway.prover"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        block = b"".join(
            [key + len(signed).to_bytes(2) + signed for key, signed in claims],
        )
        process.stdin.write(len(block).to_bytes(4) + block)
        process.stdin.flush()
        answer = process.stdout.read(len(claims))
        if len(answer) != len(claims):
            raise OSError(f"{len(answer)} answers to {len(claims)} questions")
        return [byte == 1 for byte in answer]

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # it was not there to read the rest
                    pipe.close()
        process.wait()
        self._process = None

    def close(self) -> None:
        """End the helper, without waiting for what it does. Idempotent."""
        if self._closed:
            return
        self._closed, self._helps = True, False
        if self._process is not None:
            self._process.kill()
        self._thread.submit(self._end)
        self._thread.shutdown(wait=False)


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more questions."""
    while len(head := questions.read(4)) == 4:
        block = questions.read(int.from_bytes(head))
        answer = bytearray()
        at = 0
        while at < len(block):
            key, at = block[at : at + KEY_SIZE], at + KEY_SIZE
            end = at + 2 + int.from_bytes(block[at : at + 2])
            answer.append(is_signed(key, block[at + 2 : end]))
            at = end
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of the questions ends it
    serve(sys.stdin.buffer, sys.stdout.buffer)
