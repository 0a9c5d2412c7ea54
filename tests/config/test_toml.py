"""The lines of keys."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.errors import ConfigError
from qis_edge.schema.text import toml, toml_key
from qis_edge.schema.toml import key_lines, parse_document


def test_lines_of_keys() -> None:
    text = '''\
a = 1
b.c = """
[not.a.table]
x = \\""" """
[node]  # comment with = and [
'quoted key' = 'it''s = fine'
list = [ 1, {q = 2,
}, # ]
  "]" ]
[[sensor]]
driver = "replay"
ch.temp = { result = "t", "sta\\u0074" = [ [1],
  2] }
[[sensor]]
[sensor.channels]
"a.b" = """\\
  x"""
[[sensor.sub]]
y = \'\'\'
]
\'\'\'
z = 1979-05-27T07:32:00Z
'''.replace("'it''s = fine'", "'its = fine'")
    # Arrays of TOML 1.0 may have line breaks, inline tables may not; a scanner need not care.
    lines = key_lines(text)
    assert lines["a",] == 1
    assert lines["b", "c"] == 2
    assert ("not",) not in lines
    assert lines["node", "quoted key"] == 6
    assert lines["node", "list", 1, "q"] == 7
    assert lines["node", "list", 2] == 9
    assert lines["sensor", 0, "driver"] == 11
    assert lines["sensor", 0, "ch", "temp", "stat", 1] == 13
    assert lines["sensor", 1] == 14
    assert lines["sensor", 1, "channels", "a.b"] == 16
    assert lines["sensor", 1, "sub", 0, "y"] == 19
    assert lines["sensor", 1, "sub", 0, "z"] == 22


@given(
    st.recursive(
        st.text(max_size=6) | st.integers() | st.booleans(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=10,
    ).filter(lambda value: isinstance(value, dict))
)
def test_every_key_of_a_document_has_its_line(tree: dict[str, Any]) -> None:
    text = "".join(f"{toml_key(key)} = {toml(value)}\n" for key, value in tree.items())
    lines = key_lines(text)
    assert tomllib.loads(text) == tree
    for number, key in enumerate(tree, start=1):
        assert lines[key,] == number


@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"x"=', "}"), ('[{"x"=', "}]")])
def test_no_depth_is_more_than_an_error(open_: str, close: str) -> None:
    """What the parser just manages, the scanner of places may not, for it is deeper in calls."""
    for depth in range(120, 480):  # about the interpreter's limit, whoever calls
        with contextlib.suppress(ConfigError):
            parse_document(f"a={open_ * depth}1{close * depth}", Path("deep.toml"))
