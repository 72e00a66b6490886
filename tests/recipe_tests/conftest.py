"""What the tests of several corpora start from."""

import pytest

from tests.recipe_tests.phone_corpora import LEXICON


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "cmudict.dict"
    path.write_text(LEXICON)
    return path
