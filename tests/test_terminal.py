from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.terminal import duration, harmless, moment, pairs, plural, size, table, width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("field-1", "field-1"),
        ("Weinberg Süd, 21.5 °C – 雨", "Weinberg Süd, 21.5 °C – 雨"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\nb\tc", r"a\x0d\x0ab\x09c"),
        ("a\u2028b\u2029c\x85", r"a\u2028b\u2029c\x85"),
        ("evil\u202etxt.exe\u2066", r"evil\u202etxt.exe\u2066"),
        ("zero\u200bwidth\ufeff\u00ad", r"zero\u200bwidth\ufeff\xad"),
        ("no\u00a0break", r"no\xa0break"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("private\ue000\U000f0000", r"private\ue000\U000f0000"),
        ("variation\ufe0f", r"variation\ufe0f"),
        ("hangul\u3164", r"hangul\u3164"),
        ("lone\ud800", r"lone\ud800"),
        (r"a\x1b", r"a\\x1b"),
        ("", ""),
    ],
)
def test_harmless(text: str, shown: str) -> None:
    assert harmless(text) == shown


@given(st.text(st.characters(codec=None)))
def test_nothing_that_acts_gets_through(text: str) -> None:
    shown = harmless(text)
    assert all(unicodedata.category(c)[0] not in "CZ" or c == " " for c in shown)
    shown.encode()


@given(st.text(), st.text())
def test_different_texts_look_different(a: str, b: str) -> None:
    assert (a == b) == (harmless(a) == harmless(b))


@given(st.text(), st.integers(0, 20))
def test_a_limit_holds(text: str, limit: int) -> None:
    assert len(harmless(text, limit=limit)) <= max(limit, 1)


def test_other_things_are_shown_as_text() -> None:
    assert harmless(12.5) == "12.5"


def test_table_aligns_and_is_harmless() -> None:
    shown = table(["name", "n"], [["雨", 5], ["a\x1bb", None], ["plain", 1234]])
    assert shown.splitlines() == [
        "name       n",
        "雨         5",
        r"a\x1bb     -",
        "plain   1234",
    ]


def test_table_of_nothing() -> None:
    assert table(["a", "b"], []) == "a  b"


def test_pairs() -> None:
    assert pairs([("a", True), ("long", "x\n"), ("", None)]) == "a     yes\nlong  x\\x0a\n      -"


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("雨", 2), ("e\u0301", 1), ("", 0)])
def test_width(text: str, columns: int) -> None:
    assert width(text) == columns


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1536, "1.54 kB"),
        (999_700, "1 MB"),
        (64_000_000, "64 MB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_size(count: float, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.25, "0.25 s"),
        (59, "59 s"),
        (90, "1 min 30 s"),
        (3600, "1 h"),
        (3601, "1 h"),
        (100_000, "1 d 3 h"),
        (-90, "-1 min 30 s"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_moment() -> None:
    assert moment(0) == "1970-01-01 00:00:00Z"
    assert moment(None) == "-"
    assert moment(1e18) == "@1000000000000000000"


def test_plural() -> None:
    assert (plural(1, "packet"), plural(2, "packet")) == ("1 packet", "2 packets")
