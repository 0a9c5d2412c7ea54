"""The kept corpus, replayed without a fuzzer: every input is refused as promised, or holds.

``make fuzz`` grows it. Nothing here may raise anything but what a target lets pass, nor take long.
"""

from __future__ import annotations

import time

import pytest

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS

#: Seconds that one input may take. Each takes milliseconds; a hang takes for ever.
PATIENCE = 20.0


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_fuzzer_kept_is_refused_or_holds(target: str) -> None:
    inputs = corpus.kept(corpus.CORPUS, target)
    assert inputs, f"no corpus: make fuzz, and commit tests/fuzz/corpus/{target}.txt"
    for data in inputs:
        began = time.monotonic()
        TARGETS[target](data)
        assert time.monotonic() - began < PATIENCE, data.hex()


@pytest.mark.parametrize("target", TARGETS)
def test_what_once_broke_a_decoder_does_not_again(target: str) -> None:
    for data in corpus.seeds(target):
        TARGETS[target](data)


def test_every_kept_file_is_of_a_target() -> None:
    for folder in (corpus.CORPUS, corpus.FINDINGS):
        assert {path.stem for path in folder.glob("*")} <= set(TARGETS)


def test_the_corpus_is_small() -> None:
    for target in TARGETS:
        inputs = corpus.kept(corpus.CORPUS, target)
        assert len(inputs) <= corpus.MOST
        assert sum(map(len, inputs)) <= corpus.MOST_BYTES


def test_a_decoder_that_lets_out_another_error_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(raw: bytes, *_: object, **__: object) -> None:
        raw.decode("ascii")

    monkeypatch.setattr("tests.fuzz.targets.unpack", careless)
    with pytest.raises(UnicodeDecodeError):
        list(map(TARGETS["packet"], corpus.kept(corpus.CORPUS, "packet")))
