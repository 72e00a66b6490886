"""The corpus of the fuzzer breaks no reader, nor does what it changes in some
seconds; ``python -m tests.fuzz.fuzzer`` goes on for longer."""

import pytest

from tests.fuzz.fuzzer import READERS, broken_by, corpus, fuzz


@pytest.mark.parametrize("kind", READERS)
def test_the_corpus_breaks_no_reader(kind, tmp_path):
    for path in corpus(kind):
        copy = tmp_path / path.name.rpartition("-")[2]
        copy.write_bytes(path.read_bytes())
        assert broken_by(kind, copy) is None, path


@pytest.mark.parametrize("kind", READERS)
def test_the_fuzzer_finds_nothing(kind):
    assert not fuzz(kind, seconds=2, seed=0)
