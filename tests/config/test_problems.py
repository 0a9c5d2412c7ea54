"""Every mistake is found at once, with its place, and none is a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import GatewayConfig, load_gateway
from qis_edge.config import NodeConfig, default_path, load_node
from qis_edge.core.errors import ConfigError, UsageError
from qis_edge.schema import loads
from qis_edge.schema.base import parse
from qis_edge.schema.text import headings, sample
from qis_edge.schema.toml import Document
from tests.config.kit import BINNED, GATEWAY, NODE, REPLAY, SYSTEM, node, problems


def test_problems_name_the_file_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(NODE + "[log]\nlevel = 1\n")
    folder = tmp_path / "config.toml.d"
    folder.mkdir()
    (folder / "a.toml").write_text(
        '\n[peers]\nbits = 1\n[[sensor]]\ndriver = "system"\ninterval = 3\n'
        'channels.load = "wind_speed"\n'
    )
    with pytest.raises(ConfigError) as error:
        load_node(path)
    found = [(Path(p.file).name, p.line, p.key) for p in error.value.problems]
    assert found == [
        ("config.toml", 14, "log.level"),
        ("a.toml", 3, "peers.bits"),
        ("a.toml", 6, "sensor[2].interval"),
    ]


def test_everything_is_said_at_once_with_its_line() -> None:
    found = problems(
        """\
[node]
nam = "x"
[situatoin]
[situation]
domain = "weathr"
fields.season = {from = "calendar.seson"}
[[sensor]]
driver = "replya"
interval = 10
channels.t = {result="temperature", statistic="men"}
[[sensor]]
driver = "system"
interval = "40d"
channels.loud = "temperature"
[links.mqtt]
url = "mqt://host"
key = "nokey.pem"
[outbox]
budget = "64 MG"
ttl = 7
"""
    )
    assert {key: (line, suggestion) for key, (line, _, suggestion) in found.items()} == {
        "node.nam": (2, "did you mean name?"),
        "situatoin": (3, "did you mean situation?"),
        "situation.domain": (5, 'did you mean "weather"?'),
        "situation.fields.season.from": (6, None),
        "sensor[1].driver": (8, "did you mean replay?"),
        "sensor[1].interval": (9, 'such as "10s"'),
        "sensor[1].channels.t.statistic": (10, "did you mean mean?"),
        "sensor[2].interval": (13, None),
        "sensor[2].channels.loud": (14, "did you mean load?"),
        "links.mqtt.url": (16, "did you mean mqtt?"),
        "links.mqtt.key": (17, None),
        "outbox.budget": (19, 'write "500 kB", "64 MB" or "1 GB"'),
        "outbox.ttl": (20, 'such as "7s"'),
    }


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("[distil]\nwindow = true", "distil.window", "not true"),
        ('[distil]\nwindow = "0s"', "distil.window", "outside 1s to 31d"),
        ('[distil]\nwindow = "1.5s"', "distil.window", "whole seconds"),
        ('[distil]\nwindow = "1 h 3"', "distil.window", "is not a duration"),
        ('[distil]\nwindow = "999999999999d"', "distil.window", "outside"),
        ("[distil]\nexpected = 1.5", "distil.expected", "not a number"),
        ("[distil]\nexpected = true", "distil.expected", "not true"),
        ('[distil]\nfunction = "a b"', "distil.function", "not a Python callable"),
        ("[peers]\nbits = 257", "peers.bits", "257 is outside 64 to 256"),
        ("[peers]\nbits = 1" + "0" * 400, "peers.bits", "that is outside"),
        ('[peers]\nkeep = "64 mb"', "peers.keep", "is not a size"),
        ("[peers]\nkeep = 5", "peers.keep", "with its unit"),
        ("[clock.simulate]\nepoch = 2013-06-01\nanchor = 1", "clock.simulate.epoch", "must be"),
        (
            "[clock.simulate]\nepoch = 2013-06-01T00:00:00\nanchor = 1",
            "clock.simulate.epoch",
            "no offset",
        ),
        ('[clock.simulate]\nepoch = "june"\nanchor = 1', "clock.simulate.epoch", "is not a date"),
        ("[clock.simulate]\nepoch = 1\nanchor = nan", "clock.simulate.anchor", "outside"),
        ("[clock.simulate]\nepoch = 1\nanchor = 1\nrate = inf", "clock.simulate.rate", "outside"),
        ("[clock.simulate]\nepoch = 1\nanchor = 1\nrate = nan", "clock.simulate.rate", "outside"),
        ('[outbox]\nttl = "90min"', "outbox.ttl", "whole hours"),
        ("[[outbox]]", "outbox", "must be a table, not an array"),
        ("[sensor.fail]", "sensor[1].fail", "unknown table"),
        ('[log]\nlevel = "INFO"', "log.level", "is not known"),
        ('[links.mqtt]\nurl = "mqtt://"', "links.mqtt.url", "names no host"),
        ('[links.mqtt]\nurl = "localhost"', "links.mqtt.url", "no scheme"),
        ('[links.mqtt]\nurl = "mqtt://h:99999"', "links.mqtt.url", "host or port"),
        ('[links.mqtt]\nurl = "mqtt://h/x"', "links.mqtt.url", "after host and port"),
        ('[links.mqtt]\nurl = "mqtt://h"\nca = "/"', "links.mqtt.ca", "without TLS"),
        ('[links.mqtt]\nurl = "mqtts://h"\nca = "a\\u0000b"', "links.mqtt.ca", "control"),
        ('[links.mqtt]\nurl = "mqtts://h"\nca = "~nobody-at-all/x"', "links.mqtt.ca", "not a path"),
        ('[links.mqtt]\nprotocol = "3"', "links.mqtt.protocol", "is not known"),
        ("[links.lora]\nregion = 1", "links.lora", "unknown table"),
        (
            '[situation.fields.wind]\nfrom = "calendar.hour"',
            "situation.fields.wind",
            "no such field",
        ),
        ("[situation.vector]\nelevation = 3", "situation.vector.latitude", "all continuous"),
        (
            '[situation.vector]\nlatitude = 1\nelevation = "x"',
            "situation.vector.elevation",
            "number or a table",
        ),
        (
            '[situation.vector]\nlatitude = 1\nelevation = { from = "result.wind" }',
            "situation.vector.elevation",
            "no sensor feeds",
        ),
        ('[[sensor]]\ndriver = "system"', "sensor[2].channels", "is missing"),
        ('[[sensor]]\ndriver = "system"\nchannels = {}', "sensor[2].channels", "not be empty"),
        (
            '[[sensor]]\ndriver = "system"\nchannels.load = "temprature"',
            "sensor[2].channels.load",
            "weather has no result",
        ),
        (
            f"{SYSTEM}channels.load = {{ result = 'humidity', statistic = 'mode' }}",
            "sensor[2].channels.load",
            "no statistic of numbers",
        ),
        (
            f"{SYSTEM}channels.load = {{ result = 'temperature', statistic = 'last' }}",
            "sensor[2].channels.load",
            "another statistic",
        ),
        (
            '[[sensor]]\ndriver = "system"\ndsik = "/"\nchannels.load = "humidity"',
            "sensor[2].dsik",
            "unknown key",
        ),
        (
            '[[sensor]]\ndriver = "no.module:here"\nchannels.load = "humidity"',
            "sensor[2].driver",
            "cannot be imported",
        ),
        (
            f"{REPLAY}file = 'none.csv'\ncolumns.t = 't'\nchannels.t = 'humidity'",
            "sensor[2].file",
            "there is no",
        ),
    ],
)
def test_what_is_wrong(text: str, key: str, words: str) -> None:
    found = problems(NODE + text + "\n")
    assert words in found[key][1]
    assert list(found) == [key]


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("", "gateway", "is missing"),
        ("gateway = 1", "gateway", "must be a table"),
        ('[gateway]\nname = "a b"', "gateway.name", "must be a name"),
        (GATEWAY + 'custody = "spol"', "gateway.custody", "is not known"),
        (GATEWAY + "[broker]\nembedded = false", "links.mqtt.url", "is missing"),
        (GATEWAY + '[broker]\nlisten = "1883"', "broker.listen", "is not an address"),
        (GATEWAY + '[broker]\nlisten = "0.0.0.0:1883"', "broker.listen", "without a password"),
        (GATEWAY + "[routing]\nengines = []", "routing.engines", "needs 1 to 16"),
        (GATEWAY + '[routing]\nengines = "sqlite:a"', "routing.engines", "must be an array"),
        (GATEWAY + '[routing]\nengines = ["routing.db"]', "routing.engines[1]", "no scheme"),
        (GATEWAY + '[routing]\nengines = ["sqlit:a"]', "routing.engines[1]", "unknown engine"),
        (
            GATEWAY + '[routing]\nengines = ["sqlite:a", "sqlite:a"]',
            "routing.engines[2]",
            "is there twice",
        ),
        (GATEWAY + '[spool]\nretention = "1s"', "spool.retention", "outside"),
    ],
)
def test_what_is_wrong_at_a_gateway(text: str, key: str, words: str) -> None:
    found = problems(text, GatewayConfig)
    assert words in found[key][1]
    assert list(found) == [key]


@pytest.mark.parametrize(
    ("source", "key", "words"),
    [
        ('"beach"', "", "is not a value of terrain"),
        ("3", "", "must be a word or a table"),
        ("{}", "", "either value or from"),
        ('{value = "coast", from = "calendar.hour"}', "", "either value or from"),
        ('{from = "result.wind", missing = "coast"}', "", "no sensor feeds"),
        ('{from = "result.wind"}', ".missing", "which value holds"),
        ('{from = "calendar.season"}', "", "gives winter, which terrain cannot be"),
        ('{value = "coast", bins = [1]}', ".bins", "only with from"),
        ('{from = "result.temperature", missing = "x", bins = [2]}', ".missing", "not a value"),
        ('{from = "result.temperature", missing = "coast", bins = [2]}', ".bins", "has 7 values"),
        (
            BINNED + 'bins = [2, 1], values = ["plain", "ridge", "water"] }',
            ".bins",
            "must ascend",
        ),
        (
            '{from = "result.temperature", missing = "coast", bins = [2], values = ["plain"]}',
            ".values",
            "make 2 bins",
        ),
    ],
)
def test_what_is_wrong_with_a_field(source: str, key: str, words: str) -> None:
    text = NODE.replace('terrain = "coast"', f"terrain = {source}")
    found = problems(text)
    assert words in found["situation.fields.terrain" + key][1]
    assert found["situation.fields.terrain" + key][0] == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sensor = []\n", "needs 1 to 64"),
        ("sensor = 3\n", "must be an array of tables"),
        ('[sensor]\ndriver = "system"\n', "must be an array of tables"),
    ],
)
def test_what_is_no_array_of_tables(text: str, words: str) -> None:
    head, _, _ = NODE.partition("[[sensor]]")
    found = problems(text + head if "=" in text.partition("\n")[0] else head + text)
    assert words in found["sensor"][1]
    if text.startswith("["):
        assert found["sensor"][2] == "write [[sensor]] instead of [sensor]"


def test_a_missing_field_is_told_its_values() -> None:
    found = problems(NODE.replace('terrain = "coast"\n', ""))
    line, message, suggestion = found["situation.fields.terrain"]
    assert (line, message) == (5, "is missing")
    assert suggestion is not None
    assert "coast, plain" in suggestion


def test_a_misspelt_key_is_one_problem_not_two() -> None:
    assert list(problems(NODE.replace("name =", "nmae ="))) == ["node.nmae"]
    assert list(problems(NODE.replace("terrain =", "terain ="))) == ["situation.fields.terain"]


def test_a_template_of_ones_own_is_judged_in_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nrevison = 1\n')
    path = tmp_path / "config.toml"
    path.write_text(NODE.replace('"weather"', '"./mine.toml"'))
    with pytest.raises(ConfigError) as error:
        load_node(path)
    files = {Path(problem.file).name for problem in error.value.problems}
    assert "mine.toml" in files


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[node\n", 1),
        ("a = 1\nb = \n", 2),
        ("a = 1\na = 2\n", 2),
        ("a = '''\n\n", 3),
        ("[a]\n[a]\n", 2),
        ("a = 2013-13-01\n", 1),
        ("a = " + "[" * 5000, None),
        ("a = " + "9" * 5000, None),
    ],
)
def test_what_is_not_toml(text: str, line: int | None) -> None:
    with pytest.raises(ConfigError) as error:
        loads(NodeConfig, text, Path("c.toml"))
    (problem,) = error.value.problems
    assert problem.line == line
    assert problem.file == "c.toml"


class Loud:
    """A driver of somebody else's."""

    def __init__(self, settings: Any) -> None:
        raise KeyError("port")


def test_a_driver_that_fails_is_a_problem_of_the_configuration() -> None:
    found = problems(NODE.replace('"system"', '"tests.config.test_problems:Loud"'))
    assert "failed: KeyError('port')" in found["sensor[1]"][1]
    found = problems(NODE.replace('"system"', '"tests.config.kit:NODE"'))
    assert "is not callable" in found["sensor[1].driver"][1]


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("qis_edge.config.is_root", lambda: False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("QIS_EDGE_CONFIG", raising=False)
    with pytest.raises(UsageError, match="no home folder"):
        default_path("edge")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    with pytest.raises(ConfigError, match="there is no such file") as error:
        load_node(path)
    assert error.value.hint == "qis-edge init --fleet FILE makes one"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_gateway(tmp_path)
    path.write_bytes(b"# ok\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"config.toml:2: TOML: not UTF-8"):
        load_node(path)
    path.write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(ConfigError, match="larger than"):
        load_node(path)
    path.write_bytes(b"\xef\xbb\xbf" + NODE.encode())  # some editors begin a file with a mark
    assert load_node(path).node.name == "field-1"


def test_no_secret_is_repeated() -> None:
    secret = "hunter2"
    text = NODE + (
        f'[links.mqtt]\nurl = "mqtt://u:{secret}@h"\npassword = "{secret}"\n'
        f"[links.{secret}x]\n[outbox]\nbudget = {{ {secret} = 1 }}\n"
    )
    with pytest.raises(ConfigError) as error:
        loads(NodeConfig, text.replace(f"[links.{secret}x]\n", ""), Path("c.toml"))
    found = {problem.key for problem in error.value.problems}
    assert found == {"links.mqtt.url", "links.mqtt.password", "outbox.budget"}
    assert secret not in str(error.value)
    for url in (f"mqt:/{secret}@h", f"mqtt://u:{secret}@h:x", f"{secret}", f"u:{secret}@h"):
        with pytest.raises(ConfigError) as error:
            node(f'[links.mqtt]\nurl = "{url}"\n')
        assert secret not in str(error.value)
    for url in (f"redix://:{secret}@h", f"redis://:{secret}@h?nothing=1", f"redis://:{secret}@:x"):
        with pytest.raises(ConfigError) as error:
            loads(GatewayConfig, GATEWAY + f'[routing]\nengines = ["{url}"]', Path("c"))
        assert secret not in str(error.value)


# --- priorities ----------------------------------------------------------------------------

_WORDS = '[sensor.channels]\ncpu_temperature = "temperature"\nload = "present_weather"\n'


@pytest.mark.parametrize(
    ("rule", "key", "message", "suggestion"),
    [
        ("above = 1", "result", "is missing", None),
        ('result = "temperature"', "", "must have above, below or equals", None),
        ('result = "temperatur"\nabove = 1', "result", "weather has no result", "temperature?"),
        ('result = "humidity"\nabove = 1', "result", "no sensor feeds", None),
        ('result = "temperature"\nabove = 95', "above", "never holds", None),
        ('result = "temperature"\nbelow = -90', "below", "never holds", None),
        ('result = "temperature"\nabove = 0\nbelow = 9', "above", "every number", "between"),
        ('result = "temperature"\nequals = "warm"', "equals", "is a number", "above or below"),
        ('result = "present_weather"\nabove = 1', "above", "is a word", "write equals"),
        ('result = "present_weather"\nequals = "rian"', "equals", 'never "rian"', "rain?"),
        ('result = "temperature"\nabove = "1"', "above", "must be a number", None),
        (
            'result = "temperature"\nabove = 1\npriority = "urgnet"',
            "priority",
            "is not known",
            "urgent?",
        ),
    ],
)
def test_rules_of_priority(rule: str, key: str, message: str, suggestion: str | None) -> None:
    text = NODE.replace('[sensor.channels]\ncpu_temperature = "temperature"\n', _WORDS)
    found = problems(f"{text}[[priority]]\n{rule}\n")
    at = f"priority[1].{key}".rstrip(".")
    assert at in found
    assert message in found[at][1]
    if suggestion is not None:
        assert suggestion in (found[at][2] or "")


@pytest.mark.parametrize("key", ["low", "normal", "high"])
def test_packing_is_by_durations(key: str) -> None:
    assert set(problems(f'{NODE}[packing]\n{key} = 30\nurgent = "0s"\n')) == {
        f"packing.{key}",
        "packing.urgent",
    }


# --- nothing gives a traceback -----------------------------------------------------------

_SCALARS = st.one_of(
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.datetimes(),
    st.dates(),
    st.times(),
)
_KEYS = st.sampled_from(
    sorted({part for name in headings(NodeConfig) for part in name.split(".")} - {"<name>"})
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_KEYS, _TREES, max_size=6), st.booleans())
@settings(max_examples=300)
def test_any_tree_is_judged(tree: dict[str, Any], full: bool) -> None:
    for cls in (NodeConfig, GatewayConfig):
        try:
            parse(cls, Document(Path("c.toml"), tree), full=full)
        except ConfigError as error:
            assert error.problems
            assert str(error).isprintable() or "\n" in str(error)


@given(st.text(st.sampled_from("[]{}=.,\"'\\#ab1 \n\t-:é\x00"), max_size=60))
@settings(max_examples=300)
def test_any_text_is_judged(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        loads(GatewayConfig, text, Path("c.toml"), full=False)
    assert error.value.problems


@given(st.data())
@settings(max_examples=200)
def test_a_damaged_configuration_is_judged(data: st.DataObject) -> None:
    text = sample(NodeConfig)
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 30))
    text = text[:at] + data.draw(st.text(max_size=4)) + text[at + cut :]
    try:
        loads(NodeConfig, text, Path("c.toml"), full=False)
    except ConfigError as error:
        assert error.problems
