"""Consistent Overhead Byte Stuffing: bytes without zeros, for zeros to stand between them.

Cheshire and Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM Transactions on Networking
7(2), 1999. A code byte *n* is followed by *n* − 1 bytes that are not zero and stands for them
and a zero; 255 is followed by 254 and stands for these alone; the last zero is one too many and
is not there. Where data ends with a group of 254 nothing follows the group; decoding also takes
the ``01`` that some write there.
"""

from __future__ import annotations

from qis_edge.core.errors import Reason, Refused

#: Bytes of the longest group, without its code.
_GROUP = 254


def encoded_size(size: int) -> int:
    """The most bytes that ``size`` bytes become: one more, and one for each further 254."""
    return size + max(1, -(-size // _GROUP))


def encode(data: bytes) -> bytes:
    """``data`` without zeros, at most :func:`encoded_size` long."""
    out = bytearray()
    *parts, last = data.split(b"\0")
    for part in parts:
        rest = _full_groups(out, part)
        out.append(len(rest) + 1)
        out += rest
    rest = _full_groups(out, last)
    if rest or len(rest) == len(last):
        out.append(len(rest) + 1)
        out += rest
    return bytes(out)


def _full_groups(out: bytearray, part: bytes) -> bytes:
    """Write the groups of 254; gives what is left."""
    full = len(part) // _GROUP * _GROUP
    for at in range(0, full, _GROUP):
        out.append(_GROUP + 1)
        out += part[at : at + _GROUP]
    return part[full:]


def decode(encoded: bytes) -> bytes:
    """What was encoded.

    :raises Refused: BOUNDS, there is a zero; TRUNCATED, it ends within a group.
    """
    if 0 in encoded:
        raise Refused(Reason.BOUNDS, "cobs", "a zero")
    if not encoded:
        raise Refused(Reason.TRUNCATED, "cobs")
    out = bytearray()
    at = 0
    while at < len(encoded):
        code = encoded[at]
        end = at + code
        if end > len(encoded):
            raise Refused(Reason.TRUNCATED, "cobs")
        out += encoded[at + 1 : end]
        if code <= _GROUP and end < len(encoded):
            out.append(0)
        at = end
    return bytes(out)
