"""COSE (RFC 9052), the two structures that we use, in the one framing that we allow.

``COSE_Sign1`` with Ed25519 and ``COSE_Mac0`` with HMAC 256/64. A message has exactly one
encoding up to the algorithm number (-19, RFC 9864; -8 is accepted when reading), so it is
matched as bytes: there is no header to smuggle anything in. The unprotected header is
exactly ``{4: kid}``; it is not signed and enters no id.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from qis_edge.core.cbor import item_end
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import KID_SIZE, SIGNATURE_SIZE, Identity, PublicKey

MAC_SIZE = 8

ED25519 = bytes.fromhex("a10132")  # {1: -19}, RFC 9864
EDDSA = bytes.fromhex("a10127")  # {1: -8}, RFC 9053, read only
_HMAC_256_64 = bytes.fromhex("a10104")  # {1: 4}
_KID = bytes.fromhex("a10448")  # {4: bstr of 8}

_SIGN1 = b"\xd2\x84\x43"
_MAC0 = b"\xd1\x84\x43" + _HMAC_256_64
#: What precedes the kid, and the signature, in a COSE_Sign1 of ours.
SIGN1_HEAD = _SIGN1 + ED25519 + _KID
SIGNATURE_HEAD = b"\x58\x40"
_MAC_HEAD = b"\x48"

_SIGN1_PAYLOAD = len(_SIGN1) + len(ED25519) + len(_KID) + KID_SIZE
#: What COSE adds to a payload of 24 to 255 bytes.
SIGN1_OVERHEAD = _SIGN1_PAYLOAD + 2 + len(SIGNATURE_HEAD) + SIGNATURE_SIZE


def _bstr(data: bytes) -> bytes:
    """A CBOR byte string of at most 65535 bytes."""
    size = len(data)
    if size < 24:
        return bytes((0x40 | size,)) + data
    if size < 256:
        return bytes((0x58, size)) + data
    return b"\x59" + size.to_bytes(2) + data


def structure(protected: bytes, aad: bytes, payload: bytes) -> bytes:
    """The Sig_structure (RFC 9052 section 4.4): what is signed."""
    return _structure(_SIGNATURE1, protected, aad, payload)


def _structure(context: bytes, protected: bytes, aad: bytes, payload: bytes) -> bytes:
    """Sig_structure or MAC_structure (RFC 9052 sections 4.4 and 6.3)."""
    return b"\x84" + context + _bstr(protected) + _bstr(aad) + _bstr(payload)


_SIGNATURE1 = b"\x6aSignature1"
_MAC0_CONTEXT = b"\x64MAC0"


@dataclass(frozen=True, slots=True)
class Sign1:
    """A parsed COSE_Sign1. Its signature is *not* checked until :meth:`verify`.

    :param kid: 8 bytes of the unprotected header: a hint where to find the key, no more.
    """

    kid: bytes
    protected: bytes
    payload: bytes
    signature: bytes

    def structure(self, aad: bytes) -> bytes:
        """What is signed: the Sig_structure over the bytes that were received."""
        return structure(self.protected, aad, self.payload)

    def id(self, aad: bytes) -> bytes:
        """SHA-256 of the Sig_structure, 32 bytes."""
        return hashlib.sha256(self.structure(aad)).digest()

    def verify(self, key: PublicKey, aad: bytes) -> None:
        """:raises Refused: SIGNATURE."""
        key.verify(self.structure(aad), self.signature)


def sign1(identity: Identity, payload: bytes, aad: bytes) -> bytes:
    """A tagged COSE_Sign1 of ``payload``, with ``aad`` as external_aad."""
    signature = identity.sign(_structure(_SIGNATURE1, ED25519, aad, payload))
    return b"".join(
        (
            SIGN1_HEAD,
            identity.kid,
            _bstr(payload),
            SIGNATURE_HEAD,
            signature,
        )
    )


def open_sign1(raw: bytes, limit: int, field: str) -> Sign1:
    """Match the framing.

    :raises Refused: OVERSIZED, TRUNCATED, TRAILING, HEADER, NON_CANONICAL, TYPE, INDEFINITE.
    """
    if len(raw) > limit:
        raise Refused(Reason.OVERSIZED, field, f"{len(raw)} bytes, at most {limit}")
    _expect(raw, 0, _SIGN1, field)
    protected = raw[3:6]
    if protected not in (ED25519, EDDSA):
        _expect(raw, 3, ED25519, f"{field}.protected")
    _expect(raw, 6, _KID, f"{field}.unprotected")
    payload, at = _take_bstr(raw, _SIGN1_PAYLOAD, f"{field}.payload")
    _expect(raw, at, SIGNATURE_HEAD, f"{field}.signature")
    _expect_end(raw, at + len(SIGNATURE_HEAD) + SIGNATURE_SIZE, f"{field}.signature")
    return Sign1(raw[9:_SIGN1_PAYLOAD], protected, payload, raw[-SIGNATURE_SIZE:])


@dataclass(frozen=True, slots=True)
class Mac0:
    """A parsed COSE_Mac0. Its tag is *not* checked until :meth:`verify`.

    :param kid: 8 bytes, or ``None`` where the message names no key.
    """

    kid: bytes | None
    payload: bytes
    tag: bytes

    def verify(self, key: bytes, aad: bytes, field: str = "tag") -> None:
        """:raises Refused: MAC."""
        if not hmac.compare_digest(_mac(key, self.payload, aad), self.tag):
            raise Refused(Reason.MAC, field)


def _mac(key: bytes, payload: bytes, aad: bytes) -> bytes:
    structure = _structure(_MAC0_CONTEXT, _HMAC_256_64, aad, payload)
    return hmac.digest(key, structure, "sha256")[:MAC_SIZE]


def mac0(key: bytes, payload: bytes, aad: bytes, kid: bytes | None = None) -> bytes:
    """A tagged COSE_Mac0 (HMAC 256/64, RFC 9053 algorithm 4)."""
    header = b"\xa0" if kid is None else _KID + kid
    return b"".join((_MAC0, header, _bstr(payload), _MAC_HEAD, _mac(key, payload, aad)))


def open_mac0(raw: bytes, limit: int, field: str) -> Mac0:
    """Match the framing.

    :raises Refused: as :func:`open_sign1`.
    """
    if len(raw) > limit:
        raise Refused(Reason.OVERSIZED, field, f"{len(raw)} bytes, at most {limit}")
    _expect(raw, 0, _MAC0, field)
    at = len(_MAC0)
    kid: bytes | None = None
    if raw[at : at + 1] == b"\xa0":
        at += 1
    else:
        _expect(raw, at, _KID, f"{field}.unprotected")
        at += len(_KID) + KID_SIZE
        kid = raw[at - KID_SIZE : at]
    payload, at = _take_bstr(raw, at, f"{field}.payload")
    _expect(raw, at, _MAC_HEAD, f"{field}.tag")
    _expect_end(raw, at + 1 + MAC_SIZE, f"{field}.tag")
    return Mac0(kid, payload, raw[-MAC_SIZE:])


def _expect(raw: bytes, at: int, wanted: bytes, field: str) -> None:
    """The one framing that is allowed, or the most telling reason why it is not."""
    found = raw[at : at + len(wanted)]
    if found == wanted:
        return
    if len(found) < len(wanted) and wanted.startswith(found):
        raise Refused(Reason.TRUNCATED, field)
    if any(byte in (0x9F, 0xBF, 0x5F, 0x7F) for byte in found):
        raise Refused(Reason.INDEFINITE, field)
    raise Refused(Reason.HEADER, field, f"{found.hex()} instead of {wanted.hex()}")


def _take_bstr(raw: bytes, at: int, field: str) -> tuple[bytes, int]:
    if at >= len(raw):
        raise Refused(Reason.TRUNCATED, field)
    if raw[at] >> 5 != 2:
        raise Refused(Reason.TYPE, field, "not a byte string")
    end = item_end(raw, at, field)
    info = raw[at] & 0x1F
    head = 1 if info < 24 else 1 + (1 << (info - 24))
    return raw[at + head : end], end


def _expect_end(raw: bytes, end: int, field: str) -> None:
    if len(raw) < end:
        raise Refused(Reason.TRUNCATED, field)
    if len(raw) > end:
        raise Refused(Reason.TRAILING, field)
