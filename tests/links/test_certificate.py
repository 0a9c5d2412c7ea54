"""Until when certificates are good."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from qis_edge.links.certificate import ends


@pytest.mark.parametrize("year", [1999, 2026, 2049, 2050, 2200])
def test_when_a_certificate_ends(tmp_path: Path, year: int) -> None:
    trustme = pytest.importorskip("trustme", reason="needs: trustme (pip install trustme)")
    end = dt.datetime(year, 6, 1, 12, 30, 5, tzinfo=dt.UTC)
    begin = dt.datetime(1990, 1, 1, tzinfo=dt.UTC)
    issued = trustme.CA().issue_cert("node", not_before=begin, not_after=end)
    path = tmp_path / "cert.pem"
    issued.cert_chain_pems[0].write_to_path(path)
    path.write_text("a comment\n" + path.read_text())
    assert ends(path) == end.timestamp()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert ends(path) is None


@pytest.mark.parametrize(
    "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate_ends_nowhere(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cert.pem"
    assert ends(path) is None
    path.write_text(text)
    assert ends(path) is None
