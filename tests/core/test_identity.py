"""Keys, their names and their shared secrets."""

from __future__ import annotations

import hashlib
import pickle

import cbor2
import pytest

from qis_edge.core import cose
from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.identity import Identity, PublicKey

ME = Identity.from_seed(bytes(range(32)))
OTHER = Identity.from_seed(bytes(32))


def test_the_kid_is_the_rfc_9679_thumbprint() -> None:
    key = cbor2.dumps({1: 1, -1: 6, -2: ME.public.raw})
    assert ME.public.thumbprint == hashlib.sha256(key).digest()
    assert ME.kid == ME.public.thumbprint[:8]


def test_rfc_8032_test_vector_2() -> None:
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    identity = Identity.from_seed(seed)
    assert identity.public.raw.hex() == (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    )
    assert identity.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_verify() -> None:
    signature = ME.sign(b"message")
    ME.public.verify(b"message", signature)
    for key, message, given in (
        (OTHER.public, b"message", signature),
        (ME.public, b"massage", signature),
        (ME.public, b"message", signature[:-1]),
        (ME.public, b"message", bytes(64)),
    ):
        with pytest.raises(Refused) as caught:
            key.verify(message, given)
        assert caught.value.reason is Reason.SIGNATURE


def test_both_sides_derive_one_secret() -> None:
    assert ME.shared_secret(OTHER.public) == OTHER.shared_secret(ME.public)


@pytest.mark.parametrize(
    "point", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]
)
def test_keys_of_small_order_make_no_secret(point: bytes) -> None:
    with pytest.raises(Refused) as caught:
        ME.shared_secret(PublicKey(point))
    assert caught.value.reason is Reason.SECRET


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33)])
def test_a_key_has_32_bytes(raw: bytes) -> None:
    with pytest.raises(Refused):
        PublicKey(raw)
    with pytest.raises(UsageError):
        Identity.from_seed(raw)


def test_a_private_key_does_not_show_itself() -> None:
    assert ME.seed.hex() not in repr(ME)
    assert ME.kid.hex() in repr(ME)
    with pytest.raises(UsageError):
        pickle.dumps(ME)


def test_keys_compare_by_value() -> None:
    assert PublicKey(ME.public.raw) == ME.public
    assert hash(PublicKey(ME.public.raw)) == hash(ME.public)
    assert OTHER.public != ME.public


def test_mac0_round_trip_and_refusals() -> None:
    key = bytes(range(32))
    for kid in (None, ME.kid):
        raw = cose.mac0(key, b"payload", b"aad", kid)
        opened = cose.open_mac0(raw, 512, "message")
        assert (opened.kid, opened.payload) == (kid, b"payload")
        opened.verify(key, b"aad")
        for wrong_key, aad in ((bytes(32), b"aad"), (key, b"other")):
            with pytest.raises(Refused) as caught:
                opened.verify(wrong_key, aad)
            assert caught.value.reason is Reason.MAC
        for cut in range(len(raw)):
            with pytest.raises(Refused):
                cose.open_mac0(raw[:cut], 512, "message")
        with pytest.raises(Refused):
            cose.open_mac0(raw + b"\x00", 512, "message")
        with pytest.raises(Refused):
            cose.open_mac0(raw, len(raw) - 1, "message")


def test_any_cose_library_can_read_it() -> None:
    raw = cose.sign1(ME, b"payload", b"aad")
    tag = cbor2.loads(raw)
    protected, unprotected, payload, signature = tag.value
    assert (tag.tag, cbor2.loads(protected), dict(unprotected)) == (
        18,
        {1: -19},
        {4: ME.kid},
    )
    structure = cbor2.dumps(["Signature1", protected, b"aad", payload])
    ME.public.verify(structure, signature)
