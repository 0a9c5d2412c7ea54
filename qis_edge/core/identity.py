"""Keys: who signs, and by what short name a key is known.

A key is known by its COSE key thumbprint (RFC 9679), and in headers by the first eight
bytes of it, its ``kid``. One Ed25519 key serves for signatures (RFC 8032) and, converted
to Curve25519, for the shared secrets of receipts (RFC 7748).
"""

from __future__ import annotations

import hashlib

from nacl import bindings
from nacl.exceptions import (
    BadSignatureError,
    CryptoError,
)
from nacl.exceptions import (
    RuntimeError as NaclRuntimeError,
)

from qis_edge.core.errors import Reason, Refused, UsageError

KEY_SIZE = 32
KID_SIZE = 8
SIGNATURE_SIZE = 64

# {1: 1 (OKP), -1: 6 (Ed25519), -2: x}, deterministic: the input of RFC 9679 section 3.
_COSE_KEY_PREFIX = bytes.fromhex("a301012006215820")


class PublicKey:
    """An Ed25519 public key.

    :param raw: 32 bytes.
    :raises Refused: TYPE, the length is another.
    """

    __slots__ = ("kid", "raw", "thumbprint")

    def __init__(self, raw: bytes) -> None:
        if not isinstance(raw, bytes) or len(raw) != KEY_SIZE:
            raise Refused(Reason.TYPE, "key", f"an Ed25519 public key has {KEY_SIZE} bytes")
        self.raw = raw
        self.thumbprint = hashlib.sha256(_COSE_KEY_PREFIX + raw).digest()
        self.kid = self.thumbprint[:KID_SIZE]

    @property
    def sound(self) -> bool:
        """Whether it is a point of the curve's main subgroup, as every honest key is."""
        valid: bool = bindings.crypto_core_ed25519_is_valid_point(self.raw)
        return valid

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a detached signature.

        :raises Refused: SIGNATURE.
        """
        if not is_signed(self.raw, signature + message):
            raise Refused(Reason.SIGNATURE, "signature")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey(kid={self.kid.hex()})"


def is_signed(key: bytes, signed: bytes) -> bool:
    """Whether the first 64 bytes are this public key's signature of the others."""
    try:
        # PyNaCl's VerifyKey takes and makes copies; the binding takes what it needs.
        bindings.crypto_sign_open(signed, key)
    except (BadSignatureError, CryptoError, ValueError):
        return False
    return True


class Identity:
    """A private key. It never shows itself: ``repr`` has the kid only."""

    __slots__ = ("_secret", "public", "seed")

    def __init__(self, seed: bytes) -> None:
        if not isinstance(seed, bytes) or len(seed) != KEY_SIZE:
            raise UsageError(f"a seed has {KEY_SIZE} bytes", field="seed")
        public, self._secret = bindings.crypto_sign_seed_keypair(seed)
        self.seed = seed
        self.public = PublicKey(public)

    @classmethod
    def generate(cls) -> Identity:
        """A new key from the system's randomness."""
        return cls(bindings.randombytes(KEY_SIZE))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The key of a 32-byte seed (RFC 8032 calls it the private key)."""
        return cls(seed)

    @property
    def kid(self) -> bytes:
        """The first eight bytes of the public key's thumbprint."""
        return self.public.kid

    def sign(self, message: bytes) -> bytes:
        """A detached Ed25519 signature, 64 bytes."""
        return bindings.crypto_sign(message, self._secret)[:SIGNATURE_SIZE]

    def shared_secret(self, peer: PublicKey) -> bytes:
        """X25519 of the two keys, converted (32 bytes; feed it to a KDF, never use it bare).

        :raises Refused: SECRET, the peer's key is of small order or no point of the curve.
        """
        try:
            ours = bindings.crypto_sign_ed25519_sk_to_curve25519(self._secret)
            theirs = bindings.crypto_sign_ed25519_pk_to_curve25519(peer.raw)
            secret: bytes = bindings.crypto_scalarmult(ours, theirs)
        except (CryptoError, NaclRuntimeError):
            raise Refused(Reason.SECRET, "key", "not usable for a shared secret") from None
        if not any(secret):
            raise Refused(Reason.SECRET, "key", "all-zero shared secret")
        return secret

    def __repr__(self) -> str:
        return f"Identity(kid={self.kid.hex()})"

    def __reduce__(self) -> str:
        raise UsageError("a private key is not pickled", field="identity")
