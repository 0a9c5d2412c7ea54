"""Until when a certificate is good, read with nothing but the standard library."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def ends(path: Path) -> float | None:
    """Unix seconds at which the first certificate of a PEM file ends; ``None`` where that
    cannot be told."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
        start = text.index(_BEGIN)
        der = ssl.PEM_cert_to_DER_cert(text[start : text.index(_END, start) + len(_END)])
        return _not_after(der).timestamp()
    except (OSError, ValueError, IndexError):
        return None


def _not_after(der: bytes) -> datetime:
    """RFC 5280 section 4.1: Certificate, tbsCertificate, validity, notAfter."""
    at, _ = _open(der, 0, _SEQUENCE)
    at, _ = _open(der, at, _SEQUENCE)
    if der[at] == _VERSION:
        at = _past(der, at)
    for _ in ("serialNumber", "signature", "issuer"):
        at = _past(der, at)
    at, _ = _open(der, at, _SEQUENCE)
    at = _past(der, at)  # notBefore
    kind = der[at]
    start, end = _open(der, at, kind)
    text = der[start:end].decode("ascii")
    if kind == _UTC_TIME:  # two digits of the year, from 1950 on
        text = ("19" if text[:2] >= "50" else "20") + text
    elif kind != _GENERALIZED_TIME:
        raise ValueError("not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _open(der: bytes, at: int, kind: int) -> tuple[int, int]:
    """Where the content of an element begins and ends."""
    if der[at] != kind:
        raise ValueError("another element")
    size, start = der[at + 1], at + 2
    if size & 0x80:
        more = size & 0x7F
        size, start = int.from_bytes(der[start : start + more]), start + more
    if start + size > len(der):
        raise ValueError("the end is missing")
    return start, start + size


def _past(der: bytes, at: int) -> int:
    return _open(der, at, der[at])[1]
