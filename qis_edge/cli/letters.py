"""Messages as text files, for carrying by hand: enrolments, credentials, revocation lists.

One message a line, in hexadecimal; lines that begin with ``#`` are for people. Nothing in
them is secret, and everything proves itself by its signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qis_edge.core.errors import QisError

MAX_FILE = 1 << 16


def write_letter(path: Path, words: Sequence[str], messages: Sequence[bytes]) -> None:
    """Write messages, with words for people above them.

    :raises QisError: the file cannot be written.
    """
    text = "".join(f"# {line}\n" for line in words)
    text += "".join(f"{message.hex()}\n" for message in messages)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QisError(f"{path}: {error.strerror}") from error


def read_letter(path: Path) -> list[bytes]:
    """The messages of a file, one at least; nothing in them was checked.

    :raises QisError: there are none.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise QisError(f"{path}: {error.strerror}") from error
    try:
        lines = raw.decode("ascii", "replace").splitlines() if len(raw) <= MAX_FILE else []
        wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        messages = [bytes.fromhex(line) for line in wanted]
    except ValueError:
        messages = []
    if not messages:
        raise QisError(f"{path} is no such file", hint="it should have lines of hexadecimal digits")
    return messages
