"""Writes messages.json anew. Run it only to add a vector; a change of an old one is a change
of the format: ``python -m tests.vectors.generate_messages``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from qis_edge.core import cbor, cose
from qis_edge.core.credential import (
    CREDENTIAL_AAD,
    CWT_TAG,
    ENROLMENT_AAD,
    REVOCATION_AAD,
    Enrolment,
    RevocationList,
    issue,
)
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.messages import (
    HELLO_AAD,
    POSITION_AAD,
    REQUEST_AAD,
    EnrolmentMessage,
    Greeting,
    Hello,
    Position,
    Request,
    RevocationMessage,
    Wanted,
)
from qis_edge.core.receipt import AAD as RECEIPT_AAD
from qis_edge.core.receipt import Receipt, build, mac_keys
from tests.vectors.forms import Reader

HERE = Path(__file__).parent

ROOT, GATEWAY, NODE, OTHER, REVOKED = (Identity.from_seed(bytes([n]) * 32) for n in range(5))
NAMES = {"root": ROOT, "gateway": GATEWAY, "node": NODE, "other": OTHER, "revoked": REVOKED}
KEYS = mac_keys(GATEWAY, gateway=GATEWAY.public, node=NODE.public)
NOW, LATER = 1_750_000_000, 1_800_000_000
NONCE, EPOCH = b"nonce-no", bytes(range(4))
IDS = {n: hashlib.sha256(b"packet %d" % n).digest() for n in range(300)}
ADDRESS = bytes(range(32))

BASE = issue(
    ROOT,
    subject="base-1",
    key=GATEWAY.public,
    scope="gateway issuer",
    expires=LATER,
    serial=b"seri",
).raw
NO_ISSUER = issue(
    ROOT, subject="base-2", key=OTHER.public, scope="gateway", expires=LATER, serial=b"seri"
).raw

#: Which sequences have an id in the file: the others' packets were never sent.
SENT = (3, 4, 5, 7, *range(100, 110), 200, 250)

ABOUT = [
    "The messages other than packets. Seeds are of the keys that sign; signatures are",
    "deterministic. What the reader knows is in context: the time, whom it trusts already",
    "(credentials, and the COSE_Sign1 of a revocation list), the nonce of its hello, the",
    "gateway's epoch, and the ids of the packets that it sent, by sequence. The MAC keys are",
    "those of the gateway and the node.",
]


# --- accepted --------------------------------------------------------------------------


def valid() -> dict[str, bytes]:
    interests = ((ADDRESS, 256), (bytes(32), 72))
    many = Receipt(
        b"stor",
        (7, *range(100, 110), 200),
        ((Reason.SIGNATURE, (3,)), (Reason.EQUIVOCATION, (4, 5))),
        ((3600, (250,)),),
    )

    def receipt(*said: object) -> bytes:
        return build(Receipt(b"stor", *said), KEYS.to_node, EPOCH, IDS)  # type: ignore[arg-type]  # literals

    revoked = RevocationList.issue(ROOT, number=3, issued=1_700_000_000, kids=[OTHER.kid, NODE.kid])
    crowd = [hashlib.sha256(b"key %d" % n).digest()[:8] for n in range(44)]
    full = RevocationList.issue(ROOT, number=2**32 - 1, issued=2**40 - 1, kids=crowd)
    twelve = tuple((hashlib.sha256(b"address %d" % n).digest(), 256) for n in range(12))
    return {
        "credential of a gateway": BASE,
        "credential of a node": issue(
            GATEWAY,
            subject="barn-3",
            key=NODE.public,
            scope="node",
            expires=1_790_000_000,
            not_before=1_700_000_000,
            serial=b"serial-8",
        ).raw,
        "credential with the longest name": issue(
            ROOT,
            subject="0" + "aZ.9_-x" * 9,
            key=NODE.public,
            scope="gateway issuer node",
            expires=2**40 - 1,
            not_before=0,
            serial=b"serial",
        ).raw,
        "enrolment": EnrolmentMessage(Enrolment.make(NODE, "barn-3")).encode(),
        "revocation list": RevocationMessage(revoked).encode(),
        "revocation list of nobody": RevocationMessage(
            RevocationList.issue(ROOT, number=2, issued=0, kids=[])
        ).encode(),
        "fullest revocation list": RevocationMessage(full).encode(),
        "hello": Hello(NODE.kid, NONCE, 3).encode(),
        "first hello": Hello(NODE.kid, bytes(8)).encode(),
        "wanted": Wanted.of([GATEWAY.kid, NODE.kid])[0].encode(),
        "wanted by 32 kids": Wanted.of(crowd[:32])[0].encode(),
        "greeting": Greeting(GATEWAY.kid, 1_700_000_000, EPOCH, 0, 3).encode(KEYS.to_node, NONCE),
        "greeting of a new spool": Greeting(
            GATEWAY.kid, 2**40 - 1, EPOCH, 1_690_000_000, 2**32 - 1
        ).encode(KEYS.to_node, NONCE),
        "request": Request(NODE.kid, GATEWAY.kid, interests, b"cursor", 50).encode(KEYS.to_gateway),
        "first request": Request(NODE.kid, GATEWAY.kid, interests[:1], None, 50).encode(
            KEYS.to_gateway
        ),
        "request of twelve addresses": Request(NODE.kid, GATEWAY.kid, twelve, None, 65535).encode(
            KEYS.to_gateway
        ),
        "request of one address at two widths": Request(
            NODE.kid, GATEWAY.kid, ((ADDRESS, 256), (ADDRESS, 0)), b"", 1
        ).encode(KEYS.to_gateway),
        "position": Position(GATEWAY.kid, b"cursor", True).encode(KEYS.to_node),
        "position amid": Position(GATEWAY.kid, bytes(64), False).encode(KEYS.to_node),
        "receipt for one": receipt((7,)),
        "receipt for a run": receipt(tuple(range(100, 110))),
        "receipt for many": build(many, KEYS.to_node, EPOCH, IDS),
        "receipt of a refusal": receipt((), ((Reason.FUTURE, (7,)),)),
        "receipt that only asks to wait": receipt((), (), ((0, (3, 5)), (60, (4,)))),
    }


def read_only() -> dict[str, bytes]:
    words = {2: "barn-3", 4: LATER, 7: b"serial-8", 8: cnf(NODE)}
    body = cbor.dumps({**words, 9: "node"})
    structure = cbor.dumps(["Signature1", b"\xa1\x01\x27", CREDENTIAL_AAD, body])
    head = CWT_TAG + b"\xd2\x84\x43\xa1\x01\x27\xa1\x04\x48" + GATEWAY.kid
    return {
        "credential, algorithm -8": head + cbor.dumps(body) + b"\x58\x40" + GATEWAY.sign(structure),
        "credential with unknown claims": cwt({**words, 9: "node", -7: [None], 99: {"a": b""}}),
        "credential with an unknown word": cwt({**words, 9: "node weather"}),
        "enrolment with an unknown claim": b"\x82\x04"
        + cwt({2: "barn-3", 8: cnf(NODE), 10: 1}, NODE, ENROLMENT_AAD),
        "receipt with an unknown reason": receipt_of([b"stor", [], [[200, 7]]], 7),
    }


# --- refused ---------------------------------------------------------------------------


def cnf(identity: Identity) -> dict[int, object]:
    return {1: {1: 1, -1: 6, -2: identity.public.raw}}


def cwt(claims: object, by: Identity = GATEWAY, aad: bytes = CREDENTIAL_AAD) -> bytes:
    return CWT_TAG + cose.sign1(by, cbor.dumps(claims), aad)


def receipt_of(form: object, *named: int, aad: bytes = RECEIPT_AAD, epoch: bytes = EPOCH) -> bytes:
    ids = hashlib.sha256(b"".join(IDS[n] for n in named)).digest()
    return cose.mac0(KEYS.to_node, cbor.dumps(form), aad + epoch + ids)


def last_bit(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def refused() -> dict[str, bytes]:
    return {
        **refused_framing(),
        **refused_credentials(),
        **refused_enrolments(),
        **refused_revocations(),
        **refused_control(),
        **refused_greetings(),
        **refused_requests(),
        **refused_positions(),
        **refused_receipts(),
    }


def refused_framing() -> dict[str, bytes]:
    one = valid()["receipt for one"]
    hello = valid()["hello"]
    return {
        "nothing": b"",
        "one byte": b"\x84",
        "513 bytes": hello + bytes(513 - len(hello)),
        "text": b"\x65hello",
        "a map": b"\xa1\x01\x02",
        "array of type 5": b"\x82\x05\x80",
        "indefinite array": b"\x9f\x01\xff",
        "tag 16": b"\xd0\x84\x43\xa1\x01\x04",
        "MAC: nothing after the array's head": b"\xd1\x84",
        "MAC: another algorithm": one.replace(b"\xa1\x01\x04", b"\xa1\x01\x05", 1),
        "MAC: a header too many": one.replace(b"\xa0\x47", b"\xa1\x05\x40\x47", 1),
        "MAC: indefinite header": one.replace(b"\xa0\x47", b"\xbf\xff\x47", 1),
        "MAC: payload is an array": one.replace(b"\xa0\x47", b"\xa0\x87", 1),
        "MAC: payload cut off": one[:11],
        "MAC: tag of 16 bytes": one.replace(b"\x48", b"\x50", 1) + bytes(8),
        "MAC: tag cut off": one[:-1],
        "MAC: trailing byte": one + b"\x00",
        "MAC: no type": cose.mac0(KEYS.to_node, b"\x80", POSITION_AAD, GATEWAY.kid),
        "MAC: type 4": cose.mac0(KEYS.to_node, b"\x81\x04", POSITION_AAD, GATEWAY.kid),
        "MAC: type true": cose.mac0(
            KEYS.to_node, b"\x83\xf5\x41\x00\xf5", POSITION_AAD, GATEWAY.kid
        ),
        "MAC: a map as payload": cose.mac0(KEYS.to_node, b"\xa0", POSITION_AAD, GATEWAY.kid),
    }


def refused_credentials() -> dict[str, bytes]:
    good = valid()["credential of a node"]

    def claims(by: Identity = GATEWAY, **changes: object) -> bytes:
        """Claims by name; ``...`` leaves one out."""
        numbers = {"sub": 2, "exp": 4, "nbf": 5, "cti": 7, "cnf": 8, "scope": 9, "more": "more"}
        form = {"sub": "n", "exp": LATER, "cti": b"seri", "cnf": cnf(NODE), "scope": "node"}
        form |= changes
        return cwt({numbers[k]: v for k, v in form.items() if v is not ...}, by)

    key = NODE.public.raw
    return {
        f"credential: {name}": raw
        for name, raw in {
            "cut off": good[:-1],
            "trailing byte": good + b"\x00",
            "no tag 18": CWT_TAG + good[3:],
            "another algorithm": good.replace(b"\xa1\x01\x32", b"\xa1\x01\x26", 1),
            "no name": claims(sub=...),
            "name of bytes": claims(sub=b"n"),
            "empty name": claims(sub=""),
            "name of 65": claims(sub="n" * 65),
            "name with a slash": claims(sub="a/b"),
            "name with a line's end": claims(sub="name\n"),
            "name with a first dash": claims(sub="-name"),
            "no end": claims(exp=...),
            "end as text": claims(exp="never"),
            "end past 2^40": claims(exp=2**40),
            "beginning of null": claims(nbf=None),
            "no serial": claims(cti=...),
            "serial of 3": claims(cti=b"abc"),
            "serial of 9": claims(cti=b"123456789"),
            "no key": claims(cnf=...),
            "two keys": claims(cnf={**cnf(NODE), 3: b"kid"}),
            "key with a kid": claims(cnf={1: {1: 1, 2: NODE.kid, -1: 6, -2: key}}),
            "key of another type": claims(cnf={1: {1: 2, -1: 6, -2: key}}),
            "key of another curve": claims(cnf={1: {1: 1, -1: 4, -2: key}}),
            "key of 31 bytes": claims(cnf={1: {1: 1, -1: 6, -2: key[:31]}}),
            "no scope": claims(scope=...),
            "empty scope": claims(scope=""),
            "two spaces in the scope": claims(scope="gateway  node"),
            "scope in capitals": claims(scope="Node"),
            "scope out of order": claims(scope="node gateway"),
            "word twice in the scope": claims(scope="node node"),
            "nine words in the scope": claims(scope=" ".join("abcdefghi")),
            "word of 17 letters": claims(scope="n" * 17),
            "claim named by text": claims(more=1),
            "claims in an array": cwt([1, 2]),
            "signature changed": last_bit(good),
            "signed for another purpose": cwt(
                {2: "n", 4: LATER, 7: b"seri", 8: cnf(NODE), 9: "node"}, GATEWAY, ENROLMENT_AAD
            ),
            "issuer unknown": claims(NODE, cnf=cnf(OTHER)),
            "vouches for itself": claims(NODE),
            "of the root": claims(ROOT, cnf=cnf(ROOT)),
            "gateway by an issuer": claims(cnf=cnf(NODE), scope="gateway"),
            "issuer by an issuer": claims(cnf=cnf(NODE), scope="issuer node"),
            "issuer is none": claims(OTHER),
            "past its end": claims(exp=NOW),
            "not yet begun": claims(nbf=NOW + 1),
            "revoked": claims(cnf=cnf(REVOKED)),
        }.items()
    }


def refused_enrolments() -> dict[str, bytes]:
    good = valid()["enrolment"]
    wish = {2: "barn-3", 8: cnf(NODE)}

    def enrolment(claims: object, by: Identity = NODE, aad: bytes = ENROLMENT_AAD) -> bytes:
        return b"\x82\x04" + cwt(claims, by, aad)

    forged = cwt(wish, OTHER, ENROLMENT_AAD).replace(OTHER.kid, NODE.kid, 1)
    # The neutral element: R = S·B signs everything, here with S = 1.
    nobody = PublicKey(b"\x01" + bytes(31))
    weak = cwt({2: "barn-3", 8: {1: {1: 1, -1: 6, -2: nobody.raw}}}, NODE, ENROLMENT_AAD)
    weak = weak[:-64].replace(NODE.kid, nobody.kid, 1) + b"\x58" + b"\x66" * 31 + nobody.raw
    return {
        "enrolment: nothing": b"\x82\x04",
        "enrolment: no CWT": b"\x82\x04" + good[4:],
        "enrolment: cut off": good[:-1],
        "enrolment: trailing byte": good + b"\x00",
        "enrolment: no name": enrolment({8: cnf(NODE)}),
        "enrolment: name of a folder": enrolment({2: "..", 8: cnf(NODE)}),
        "enrolment: no key": enrolment({2: "barn-3"}),
        "enrolment: of another's key": enrolment(wish, OTHER),
        "enrolment: signed by another": b"\x82\x04" + forged,
        "enrolment: signed for another purpose": enrolment(wish, aad=CREDENTIAL_AAD),
        "enrolment: of a key of small order": b"\x82\x04" + weak,
        "enrolment: signature changed": last_bit(good),
    }


def refused_revocations() -> dict[str, bytes]:
    good = valid()["revocation list"]
    kids = [NODE.kid, OTHER.kid]

    def revoked(form: object, by: Identity = ROOT, aad: bytes = REVOCATION_AAD) -> bytes:
        return b"\x82\x03" + cose.sign1(by, cbor.dumps(form), aad)

    forged = revoked([3, NOW, kids], GATEWAY).replace(GATEWAY.kid, ROOT.kid, 1)
    return {
        "revocation: nothing": b"\x82\x03",
        "revocation: no tag": b"\x82\x03" + good[3:],
        "revocation: cut off": good[:-1],
        "revocation: trailing byte": good + b"\x00",
        "revocation: a map": revoked({}),
        "revocation: two elements": revoked([3, NOW]),
        "revocation: number 0": revoked([0, NOW, kids]),
        "revocation: number past 2^32": revoked([2**32, NOW, kids]),
        "revocation: issued at a negative time": revoked([3, -1, kids]),
        "revocation: kid of 7 bytes": revoked([3, NOW, [bytes(7)]]),
        "revocation: kids descending": revoked([3, NOW, kids[::-1]]),
        "revocation: kid twice": revoked([3, NOW, [NODE.kid, NODE.kid]]),
        "revocation: 45 kids": revoked([3, NOW, [bytes([n]) * 8 for n in range(45)]]),
        "revocation: older": revoked([1, NOW, kids]),
        "revocation: by a gateway": revoked([3, NOW, kids], GATEWAY),
        "revocation: by a gateway in the root's name": forged,
        "revocation: signed for another purpose": revoked([3, NOW, kids], aad=CREDENTIAL_AAD),
    }


def refused_control() -> dict[str, bytes]:
    hello = valid()["hello"]
    kids = [bytes([n]) * 8 for n in range(33)]
    return {
        "hello: three elements": cbor.dumps([1, NODE.kid, NONCE]),
        "hello: five elements": cbor.dumps([1, NODE.kid, NONCE, 0, 0]),
        "hello: cut off": hello[:-1],
        "hello: trailing byte": hello + b"\x00",
        "hello: kid of 7 bytes": cbor.dumps([1, bytes(7), NONCE, 0]),
        "hello: kid as text": cbor.dumps([1, "12345678", NONCE, 0]),
        "hello: nonce of 9 bytes": cbor.dumps([1, NODE.kid, bytes(9), 0]),
        "hello: negative number": cbor.dumps([1, NODE.kid, NONCE, -1]),
        "hello: number of 2^32": cbor.dumps([1, NODE.kid, NONCE, 2**32]),
        "hello: number of true": cbor.dumps([1, NODE.kid, NONCE, True]),
        "hello: longer number": hello[:-1] + b"\x18\x03",
        "wanted: nobody": cbor.dumps([2, []]),
        "wanted: a kid without its array": cbor.dumps([2, NODE.kid]),
        "wanted: 33 kids": cbor.dumps([2, kids]),
        "wanted: kids descending": cbor.dumps([2, kids[1::-1]]),
        "wanted: kid twice": cbor.dumps([2, [kids[0], kids[0]]]),
        "wanted: kid of 9 bytes": cbor.dumps([2, [bytes(9)]]),
        "wanted: three elements": cbor.dumps([2, kids[:1], 0]),
    }


def refused_greetings() -> dict[str, bytes]:
    def greeting(*form: object, key: bytes = KEYS.to_node, aad: bytes = HELLO_AAD + NONCE) -> bytes:
        return cose.mac0(key, cbor.dumps(form), aad, GATEWAY.kid)

    good = (1, NOW, EPOCH, 0, 3)
    return {
        "greeting: four elements": greeting(*good[:4]),
        "greeting: time past 2^40": greeting(1, 2**40, EPOCH, 0, 3),
        "greeting: epoch of 5 bytes": greeting(1, NOW, bytes(5), 0, 3),
        "greeting: since of null": greeting(1, NOW, EPOCH, None, 3),
        "greeting: number of 2^32": greeting(1, NOW, EPOCH, 0, 2**32),
        "greeting: names no key": cose.mac0(KEYS.to_node, cbor.dumps(good), HELLO_AAD + NONCE),
        "greeting: tag changed": last_bit(greeting(*good)),
        "greeting: of another hello": greeting(*good, aad=HELLO_AAD + bytes(8)),
        "greeting: the other way's key": greeting(*good, key=KEYS.to_gateway),
    }


def refused_requests() -> dict[str, bytes]:
    one = [ADDRESS, 256]

    def request(*form: object, key: bytes = KEYS.to_gateway, aad: bytes = REQUEST_AAD) -> bytes:
        return cose.mac0(key, cbor.dumps([2, *form]), aad, NODE.kid)

    return {
        "request: four elements": request(GATEWAY.kid, [one], None),
        "request: gateway of 9 bytes": request(bytes(9), [one], None, 50),
        "request: no addresses": request(GATEWAY.kid, [], None, 50),
        "request: 17 addresses": request(GATEWAY.kid, [[b"", 0]] * 17, None, 50),
        "request: address twice": request(GATEWAY.kid, [one, one], None, 50),
        "request: address of 31 bytes": request(GATEWAY.kid, [[bytes(31), 8]], None, 50),
        "request: address without bits": request(GATEWAY.kid, [[ADDRESS]], None, 50),
        "request: 257 bits": request(GATEWAY.kid, [[ADDRESS, 257]], None, 50),
        "request: cursor of 65 bytes": request(GATEWAY.kid, [one], bytes(65), 50),
        "request: cursor as text": request(GATEWAY.kid, [one], "cursor", 50),
        "request: limit 0": request(GATEWAY.kid, [one], None, 0),
        "request: limit 65536": request(GATEWAY.kid, [one], None, 65536),
        "request: tag changed": last_bit(request(GATEWAY.kid, [one], None, 50)),
        "request: the other way's key": request(GATEWAY.kid, [one], None, 50, key=KEYS.to_node),
        "request: for another purpose": request(GATEWAY.kid, [one], None, 50, aad=POSITION_AAD),
    }


def refused_positions() -> dict[str, bytes]:
    def position(*form: object, key: bytes = KEYS.to_node) -> bytes:
        return cose.mac0(key, cbor.dumps([3, *form]), POSITION_AAD, GATEWAY.kid)

    return {
        "position: two elements": position(b"cursor"),
        "position: cursor of 65 bytes": position(bytes(65), True),
        "position: cursor of null": position(None, True),
        "position: complete of 1": position(b"cursor", 1),
        "position: tag changed": last_bit(position(b"cursor", True)),
        "position: the other way's key": position(b"cursor", True, key=KEYS.to_gateway),
    }


def refused_receipts() -> dict[str, bytes]:
    def said(*form: object) -> bytes:
        return receipt_of([b"stor", *form], 7)

    good = [b"stor", 7]
    return {
        "receipt: store of 3 bytes": receipt_of([b"sto", 7], 7),
        "receipt: nothing after the store": receipt_of([b"stor"]),
        "receipt: five elements": said(7, [[12, 3]], [[60, 4]], []),
        "receipt: nobody": said([]),
        "receipt: names a key": cose.mac0(KEYS.to_node, cbor.dumps(good), RECEIPT_AAD, GATEWAY.kid),
        "receipt: negative sequence": said(-1),
        "receipt: sequence of 2^32": said(2**32),
        "receipt: sequence of true": said(True),
        "receipt: set of text": said("7"),
        "receipt: set of three": said([7, 1, 1]),
        "receipt: one in the long form": said([7, 1]),
        "receipt: run of 0": said([7, 0]),
        "receipt: gap of 0": said([7, 1, 0, 1]),
        "receipt: past 2^32 by its run": said([2**32 - 2, 3]),
        "receipt: 4097 sequences": said([0, 4097]),
        "receipt: 2^64 sequences": said([0, 2**64 - 1]),
        "receipt: 4097 sequences in three sets": said(
            [0, 2048], [[12, [5000, 2048]]], [[60, 9000]]
        ),
        "receipt: sequence twice": said(7, [[12, [6, 2]]]),
        "receipt: refused without a set": said(7, [[12]]),
        "receipt: refused of null": said(7, None, [[60, 3]]),
        "receipt: refused flat": said(7, [12, 3]),
        "receipt: refused nobody": said(7, [[12, []]]),
        "receipt: reason 256": said(7, [[256, 3]]),
        "receipt: reasons descending": said(7, [[20, 3], [12, 4]]),
        "receipt: reason twice": said(7, [[12, 3], [12, 4]]),
        "receipt: empty at the end, refused": said(7, []),
        "receipt: empty at the end, later": said(7, [[12, 3]], []),
        "receipt: later by 2^32 seconds": said(7, [], [[2**32, 3]]),
        "receipt: tag changed": last_bit(receipt_of(good, 7)),
        "receipt: of other packets": receipt_of(good, 3),
        "receipt: of packets never sent": receipt_of([b"stor", 8], 8),
        "receipt: of another epoch": receipt_of(good, 7, epoch=bytes(4)),
        "receipt: for another purpose": receipt_of(good, 7, aad=HELLO_AAD),
    }


# --- the file --------------------------------------------------------------------------


def context() -> dict[str, object]:
    known = RevocationList.issue(ROOT, number=2, issued=1_690_000_000, kids=[REVOKED.kid])
    return {
        "about": ABOUT,
        "keys": {
            name: {
                "seed": identity.seed.hex(),
                "public": identity.public.raw.hex(),
                "thumbprint": identity.public.thumbprint.hex(),
                "kid": identity.kid.hex(),
            }
            for name, identity in NAMES.items()
        },
        "mac": {
            "secret": NODE.shared_secret(GATEWAY.public).hex(),
            "to_node": KEYS.to_node.hex(),
            "to_gateway": KEYS.to_gateway.hex(),
        },
        "context": {
            "now": NOW,
            "trusted": [known.raw.hex(), BASE.hex(), NO_ISSUER.hex()],
            "nonce": NONCE.hex(),
            "epoch": EPOCH.hex(),
            "ids": {str(n): IDS[n].hex() for n in SENT},
        },
    }


def main() -> None:
    document = context()
    for group, cases in (("valid", valid()), ("read_only", read_only())):
        accepted: list[dict[str, object]] = []
        for name, raw in cases.items():
            kind, form = Reader(document).read(raw)
            accepted.append({"name": name, "kind": kind, "raw": raw.hex(), "message": form})
        document[group] = accepted
    bad: list[dict[str, str]] = []
    for name, raw in refused().items():
        try:
            Reader(document).read(raw)
        except Refused as error:
            why = {"reason": error.reason.label, "field": error.field}
            bad.append({"name": name, "raw": raw.hex(), **why})
            print(f"{name:42} {error.reason.label:15} {error.field}")
        else:
            raise SystemExit(f"accepted: {name}")
    document["refused"] = bad
    (HERE / "messages.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
