"""How messages.json writes messages: what a reader makes of bytes, and bytes of that again.

Imports the core only, for it runs on every cbor2 that we allow.
"""

from __future__ import annotations

from typing import Any

from qis_edge.core import messages, receipt
from qis_edge.core.credential import Credential, Enrolment, RevocationList, TrustStore, issue
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.messages import (
    CredentialMessage,
    EnrolmentMessage,
    Greeting,
    Hello,
    PacketMessage,
    Position,
    Request,
    RevocationMessage,
    Wanted,
)
from qis_edge.core.receipt import MacKeys, Receipt, ReceiptMessage, code_of

Form = dict[str, Any]


class Reader:
    """Gateway and node in one: decodes and believes, with what ``context`` gives it."""

    def __init__(self, vectors: Form) -> None:
        context = vectors["context"]
        self.now: int = context["now"]
        self.nonce = bytes.fromhex(context["nonce"])
        self.epoch = bytes.fromhex(context["epoch"])
        self.ids = {int(n): bytes.fromhex(packet) for n, packet in context["ids"].items()}
        self.keys = MacKeys(
            bytes.fromhex(vectors["mac"]["to_node"]), bytes.fromhex(vectors["mac"]["to_gateway"])
        )
        self.trust = TrustStore(PublicKey(bytes.fromhex(vectors["keys"]["root"]["public"])))
        left_out = self.trust.restore(map(bytes.fromhex, context["trusted"]), self.now)
        assert not left_out

    def read(self, raw: bytes) -> tuple[str, Form]:
        """The kind of a message and what it says. :raises Refused: it is not acceptable."""
        match message := messages.decode(raw):
            case CredentialMessage():
                said = "credential", _credential(self.trust.add(message.raw, self.now))
            case EnrolmentMessage():
                one = message.enrolment
                said = "enrolment", {"name": one.name, "key": one.key.raw.hex()}
            case RevocationMessage():
                self.trust.apply(message.list.raw)
                said = "revocation", _revocation(message.list)
            case Hello():
                said = "hello", _hello(message)
            case Wanted():
                said = "wanted", {"kids": [kid.hex() for kid in message.kids]}
            case Greeting():
                message.verify(self.keys.to_node, self.nonce)
                said = "greeting", _greeting(message)
            case Request():
                message.verify(self.keys.to_gateway)
                said = "request", _request(message)
            case Position():
                message.verify(self.keys.to_node)
                said = "position", _position(message)
            case ReceiptMessage():
                receipt.verify(message, self.keys.to_node, self.epoch, self.ids.get)
                said = "receipt", _receipt(message.receipt)
            case PacketMessage():
                raise AssertionError("packets have a file of their own")
        return said


def _credential(one: Credential) -> Form:
    return {
        "subject": one.subject,
        "key": one.key.raw.hex(),
        "scope": sorted(one.scope),
        "issuer": one.issuer.hex(),
        "expires": one.expires,
        "not_before": one.not_before,
        "serial": one.serial.hex(),
    }


def _revocation(one: RevocationList) -> Form:
    kids = [kid.hex() for kid in one.kids]
    return {"number": one.number, "issued": one.issued, "kids": kids}


def _hello(one: Hello) -> Form:
    return {"kid": one.kid.hex(), "nonce": one.nonce.hex(), "revocation": one.revocation}


def _position(one: Position) -> Form:
    return {"kid": one.kid.hex(), "cursor": one.cursor.hex(), "complete": one.complete}


def _greeting(one: Greeting) -> Form:
    return {
        "kid": one.kid.hex(),
        "time": one.time,
        "epoch": one.epoch.hex(),
        "since": one.since,
        "revocation": one.revocation,
    }


def _request(one: Request) -> Form:
    return {
        "kid": one.kid.hex(),
        "gateway": one.gateway.hex(),
        "interests": [[fingerprint.hex(), bits] for fingerprint, bits in one.interests],
        "cursor": None if one.cursor is None else one.cursor.hex(),
        "limit": one.limit,
    }


def _receipt(one: Receipt) -> Form:
    return {
        "store": one.store.hex(),
        "held": list(one.held),
        "refused": [[code_of(reason), list(group)] for reason, group in one.refused],
        "later": [[seconds, list(group)] for seconds, group in one.later],
    }


class Writer:
    """Makes the messages again, from what they say.

    :param vectors: the file, which has everybody's seeds.
    """

    def __init__(self, vectors: Form) -> None:
        self._reader = Reader(vectors)
        owners = [Identity(bytes.fromhex(key["seed"])) for key in vectors["keys"].values()]
        self._owners = {identity.kid: identity for identity in owners}

    def write(self, kind: str, form: Form) -> bytes:
        """The bytes of a message of this kind."""
        raw: bytes = getattr(self, f"_{kind}")(form)
        return raw

    def _credential(self, form: Form) -> bytes:
        return issue(
            self._owners[_hex(form["issuer"])],
            subject=form["subject"],
            key=PublicKey(_hex(form["key"])),
            scope=form["scope"],
            expires=form["expires"],
            serial=_hex(form["serial"]),
            not_before=form["not_before"],
        ).raw

    def _enrolment(self, form: Form) -> bytes:
        owner = self._owners[PublicKey(_hex(form["key"])).kid]
        return EnrolmentMessage(Enrolment.make(owner, form["name"])).encode()

    def _revocation(self, form: Form) -> bytes:
        root = self._owners[self._reader.trust.root.kid]
        kids = map(_hex, form["kids"])
        made = RevocationList.issue(root, number=form["number"], issued=form["issued"], kids=kids)
        return RevocationMessage(made).encode()

    def _hello(self, form: Form) -> bytes:
        return Hello(_hex(form["kid"]), _hex(form["nonce"]), form["revocation"]).encode()

    def _wanted(self, form: Form) -> bytes:
        return Wanted(tuple(map(_hex, form["kids"]))).encode()

    def _greeting(self, form: Form) -> bytes:
        kid, epoch = _hex(form["kid"]), _hex(form["epoch"])
        greeting = Greeting(kid, form["time"], epoch, form["since"], form["revocation"])
        return greeting.encode(self._reader.keys.to_node, self._reader.nonce)

    def _request(self, form: Form) -> bytes:
        interests = tuple((_hex(fingerprint), bits) for fingerprint, bits in form["interests"])
        cursor = None if form["cursor"] is None else _hex(form["cursor"])
        request = Request(
            _hex(form["kid"]), _hex(form["gateway"]), interests, cursor, form["limit"]
        )
        return request.encode(self._reader.keys.to_gateway)

    def _position(self, form: Form) -> bytes:
        position = Position(_hex(form["kid"]), _hex(form["cursor"]), form["complete"])
        return position.encode(self._reader.keys.to_node)

    def _receipt(self, form: Form) -> bytes:
        said = Receipt(
            _hex(form["store"]),
            tuple(form["held"]),
            tuple((code, tuple(group)) for code, group in form["refused"]),
            tuple((seconds, tuple(group)) for seconds, group in form["later"]),
        )
        reader = self._reader
        return receipt.build(said, reader.keys.to_node, reader.epoch, reader.ids)


def _hex(text: str) -> bytes:
    return bytes.fromhex(text)
