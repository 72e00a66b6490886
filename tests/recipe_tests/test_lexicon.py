"""A function that says words is found where Python finds modules, and in the
current folder, which is not where a recipe's script is."""

import importlib
import sys

import pytest

from speechbrain_vq.recipes.common.lexicon import Pronouncer, find_g2p


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A current folder that Python does not search, as for a script."""
    # An empty name is the current folder.
    monkeypatch.setattr(sys, "path", [name for name in sys.path if name])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    return tmp_path


def test_a_module_of_the_current_folder_is_found(elsewhere):
    # What the function imports when it is called is found as well.
    text = "def say(word):\n    import sounds\n    return sounds.OF[word]\n"
    (elsewhere / "my_g2p_module.py").write_text(text)
    (elsewhere / "sounds.py").write_text("OF = {'TEA': 'T IY'}\n")
    assert Pronouncer(g2p="my_g2p_module:say")("TEA") == ["T", "IY"]


def test_where_it_was_searched_is_reported(elsewhere):
    with pytest.raises(ValueError, match=f"nowhere:say.*{elsewhere.name}"):
        find_g2p("nowhere:say")
