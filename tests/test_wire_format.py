"""The specification and the code say the same."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cddl_verifier import Validator  # type: ignore[import-untyped]  # it ships no types
from nacl import bindings

from qis_edge.core import (
    cbor,
    columns,
    credential,
    messages,
    outcome,
    packet,
    ranges,
    receipt,
    rows,
)
from qis_edge.core.errors import Reason
from qis_edge.core.identity import Identity
from qis_edge.links.mqtt_topics import Topics

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "wire-format.md").read_text()
PACKETS, MESSAGES = (
    json.loads((ROOT / "tests" / "vectors" / name).read_text())
    for name in ("packets.json", "messages.json")
)

Case = dict[str, Any]


def cases(group: str) -> list[Case]:
    """The vectors of a group, of every kind of message."""
    packets = [{"kind": "packet", **case} for case in PACKETS[group]]
    return [*packets, *MESSAGES[group]]


def section(heading: str) -> str:
    return re.split(r"^#+ ", PAGE.split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]


def blocks(kind: str, text: str = PAGE) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def table(heading: str) -> list[list[str]]:
    """The cells of the table of a section, its head left out."""
    lines = re.findall(r"^\| (.*) \|$", section(heading), re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[1:]]


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.strip("` "))


# --- examples --------------------------------------------------------------------------


def examples() -> dict[str, str]:
    """Name, in the first line → hex, comments left out."""
    found = {}
    for block in blocks("hex"):
        name, _, lines = block.partition("\n")
        found[name.removeprefix("# ")] = re.sub(r"#.*|\s", "", lines)
    return found


@pytest.mark.parametrize("name", examples())
def test_an_example_is_a_golden_message(name: str) -> None:
    vectors = {case["name"]: case["raw"] for case in cases("valid")}
    assert examples()[name] == vectors[name]


def test_every_kind_of_message_has_its_example() -> None:
    kinds = {case["name"]: case["kind"] for case in cases("valid")}
    assert {kinds[name] for name in examples()} == set(kinds.values())


COLUMNS = [row for row in table("Columns") if row[0].startswith("`")]


@pytest.mark.parametrize(("column", "count", "values"), COLUMNS)
def test_examples_of_columns(column: str, count: str, values: str) -> None:
    item = cbor.loads(unhex(column), "column")
    high = columns.MAX_NUMBER
    decoded = columns.decode(item, int(count), "column", low=-high, high=high, missing=True)
    shown = ", ".join("missing" if value is None else str(value) for value in decoded)
    assert shown.replace("-", "−") == values
    assert columns.encode(decoded) == item


def facts(block: str) -> dict[str, str]:
    return dict(re.findall(r"^(.*?) {2,}([0-9a-f]+)$", block, re.MULTILINE))


def test_the_example_of_a_key() -> None:
    (block,) = blocks("text", section("Keys"))
    shown = facts(block)
    public = Identity(bytes.fromhex(shown["seed"])).public
    assert shown == {
        "seed": shown["seed"],
        "key": public.raw.hex(),
        "thumbprint": public.thumbprint.hex(),
        "kid": public.kid.hex(),
    }


def test_the_example_of_mac_keys() -> None:
    shown = facts(blocks("text", section("MACed: COSE_Mac0"))[1])
    gateway, node = (Identity(bytes.fromhex(shown[f"{who}'s seed"])) for who in ("gateway", "node"))
    keys = receipt.mac_keys(node, gateway=gateway.public, node=node.public)
    wanted = {
        "secret": gateway.shared_secret(node.public),
        "key, gateway to node": keys.to_node,
        "key, node to gateway": keys.to_gateway,
    }
    for who, identity in (("gateway", gateway), ("node", node)):
        public = bindings.crypto_sign_ed25519_pk_to_curve25519(identity.public.raw)
        private = bytearray(hashlib.sha512(identity.seed).digest()[:32])
        private[0] &= 0xF8
        private[31] = private[31] & 0x7F | 0x40
        wanted |= {
            f"{who}'s seed": identity.seed,
            f"{who}'s X25519 private": bytes(private),
            f"{who}'s X25519 public": public,
        }
    assert shown == {name: value.hex() for name, value in wanted.items()}


# --- the grammar -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def grammar() -> Validator:
    return Validator("\n".join(blocks("cddl")))


@pytest.mark.parametrize("group", ["valid", "read_only"])
def test_messages_are_what_the_grammar_says(grammar: Validator, group: str) -> None:
    for case in cases(group):
        for rule in ("message", case["kind"]):
            result = grammar.validate(bytes.fromhex(case["raw"]), root_type=rule)
            assert result.valid, (case["name"], rule, result.diagnostics)


#: What is of a wrong type or form, but not by the grammar.
BY_WORDS = {"a float that would be passed over", "enrolment: of another's key"}


def test_the_grammar_admits_no_other_types(grammar: Validator) -> None:
    wrong = [case for case in cases("refused") if case["reason"] in {"type", "header", "message"}]
    assert len(wrong) > 60
    admitted = {
        case["name"]
        for case in wrong
        if grammar.validate(bytes.fromhex(case["raw"]), root_type="message").valid
    }
    assert admitted == BY_WORDS


# --- what a message begins with --------------------------------------------------------


def test_messages_begin_as_the_table_says() -> None:
    begins: dict[str, bytes] = {}
    for names, start, *_ in table("Messages"):
        for name in re.findall(r"\[(\w+)[^]]*\]", names):
            begins[name] = unhex(start)
    assert begins.keys() == {case["kind"] for case in cases("valid")}
    for case in cases("valid"):
        raw = bytes.fromhex(case["raw"])
        assert raw.startswith(begins[case["kind"]]), case["name"]


@pytest.mark.parametrize(
    ("heading", "aad"),
    [
        ("Packet", packet.AAD),
        ("Credential", credential.CREDENTIAL_AAD),
        ("Enrolment", credential.ENROLMENT_AAD),
        ("Revocation list", credential.REVOCATION_AAD),
        ("Hello and greeting", messages.HELLO_AAD),
        ("Receipt", receipt.AAD),
        ("Request and position", messages.REQUEST_AAD),
        ("Request and position", messages.POSITION_AAD),
    ],
)
def test_each_use_has_its_external_aad(heading: str, aad: bytes) -> None:
    assert f"`{aad.decode()}`" in section(heading)


# --- limits and reasons ----------------------------------------------------------------

LIMITS = {
    "bytes of a message": messages.MAX_MESSAGE,
    "depth of arrays and maps": cbor.MAX_DEPTH,
    "outcomes of a packet": packet.MAX_OUTCOMES,
    "results of a packet": rows.MAX_SERIES,
    "characters of a result's name": rows.MAX_LABEL,
    "code of a result": rows.MAX_LABEL_CODE,
    "characters of a word or summary": columns.MAX_TEXT,
    "magnitude of a number": columns.MAX_NUMBER,
    "magnitude of a power of ten": rows.MAX_POWER,
    "bits of a packed distance": columns.MAX_WIDTH,
    "seconds between outcomes": rows.MAX_INTERVAL,
    "samples": outcome.MAX_SAMPLES,
    "sequence": ranges.MAX_SEQUENCE,
    "time": rows.MAX_TIME,
    "hours of a ttl": packet.MAX_TTL,
    "numbers of a vector": packet.MAX_VECTOR,
    "tags": packet.MAX_TAGS,
    "characters of a tag": packet.MAX_TAG,
    "bytes of a credential's serial": credential.MAX_SERIAL,
    "kids in a revocation list": credential.MAX_REVOKED,
    "number of a revocation list": credential.MAX_NUMBER,
    "kids in a wanted": messages.MAX_WANTED,
    "sequences named by a receipt": ranges.MAX_EXPANDED,
    "reason in a receipt": receipt.MAX_CODE,
    "seconds of a later": receipt.MAX_SECONDS,
    "bits of an interest": messages.MAX_BITS,
    "bytes of a cursor": messages.MAX_CURSOR,
    "packets asked for by a request": messages.MAX_LIMIT,
}


def number(text: str) -> int:
    power = re.fullmatch(r"2\^(\d+)( − 1)?", text)
    return 2 ** int(power[1]) - bool(power[2]) if power else int(text)


def test_limits_are_those_of_the_code() -> None:
    limits = {what: number(most) for what, most in table("Limits")}
    # One more than always fit: the golden vectors have a request of 12, and one of 17 refused.
    assert limits.pop("interests of a request") == 16 > messages.MAX_INTERESTS
    assert limits == LIMITS


def test_reasons_are_listed_with_their_codes() -> None:
    assert {int(code): name for code, name, _ in table("Refusals")} == {
        reason.value: reason.label for reason in Reason
    }


def test_sizes_of_receipts() -> None:
    shown = re.search(
        r"one packet has (\d+) to (\d+) bytes, for one run (\d+) to (\d+)", section("Receipt")
    )
    assert shown is not None

    def size(*held: int) -> int:
        said = receipt.Receipt(bytes(4), held)
        return len(receipt.build(said, bytes(32), bytes(4), dict.fromkeys(held, bytes(32))))

    last = ranges.MAX_SEQUENCE
    run = range(last - ranges.MAX_EXPANDED + 1, last + 1)
    assert [int(n) for n in shown.groups()] == [size(0), size(last), size(0, 1), size(*run)]


# --- topics and links ------------------------------------------------------------------


def test_topics() -> None:
    topics, kid, address = Topics("here"), bytes(range(8)), bytes(range(32))
    words = {"<site>": "here", "<kid>": kid.hex(), "<address>": address[:16].hex()}
    shown = [topic.strip("`") for topic, *_ in table("MQTT")]
    filled = [re.sub(r"<\w+>", lambda word: words[word[0]], topic) for topic in shown]
    wanted = [topics.up(kid), topics.down(kid), topics.peers(address), topics.state(kid)]
    assert filled == wanted


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors
