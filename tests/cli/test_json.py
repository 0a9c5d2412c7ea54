"""Every key of ``--json`` is documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.cli.kit import (
    HERE,
    ROOT,
    RUNNING_GATEWAY,
    RUNNING_NODE,
    Site,
    deposited,
    filled,
)


def test_every_key_of_the_json_is_documented(ready: Site) -> None:
    page = (ROOT / "docs/commands.md").read_text()
    deposited(ready)
    filled(ready)
    by_name = {"refused", "results", "values", "fields", "strangers"}

    def keys(value: Any, name: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                if name not in by_name:
                    yield key
                yield from keys(inner, key)
        elif isinstance(value, list):
            for inner in value:
                yield from keys(inner)

    def documented(program: str, verb: str, shown: Any) -> None:
        (chapter,) = re.findall(
            rf"^## `{program} {verb}`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
        )
        if "as `qis-edge check`" in chapter or "as in `status`" in chapter:
            chapter = page
        for key in keys(shown):
            assert f"`{key}`" in chapter, (verb, key)

    for verb, extra in (("check", ()), ("status", ()), ("queue", ()), ("enroll", ())):
        assert ready.node(verb, "--json", *extra) == 0
        documented("qis-edge", verb, ready.console.json)
    assert ready.node("run", "--test", "--json") == 0
    documented("qis-edge", "run", ready.console.json)
    documented("qis-edge", "status", RUNNING_NODE)
    address = ("--fingerprint", HERE.fingerprint.hex())
    for verb, more in (("check", ()), ("status", ()), ("nodes", ()), ("query", address)):
        assert ready.gateway(verb, "--json", *more) == 0
        documented("qis-gateway", verb, ready.console.json)
    documented("qis-gateway", "status", RUNNING_GATEWAY)
