"""The choice of ABX items and of what is compared: bounded, and the same.

Authors
 * speechbrain_vq authors 2026
"""

import random
import tracemalloc

import pytest

from speechbrain_vq.evaluation.cells import comparisons
from speechbrain_vq.evaluation.choice import Again, capped, choose_items
from speechbrain_vq.evaluation.items import Item, make_items

from .made_up import made_up


def corpus(utterances, speakers=20, phones=30):
    """The items of a corpus that is made as it is read."""

    def made():
        for number in range(utterances):
            draw = random.Random(number)
            said = [
                (i / 10, (i + 1) / 10, f"p{draw.randrange(phones)}")
                for i in range(30)
            ]
            speaker = f"s{number % speakers}"
            yield from make_items(f"u{number}", said, speaker, True)

    return Again(made)


@pytest.mark.parametrize("context", ["within", "any"])
def test_ten_times_the_corpus_takes_no_more_memory(context):
    def chosen(utterances):
        tracemalloc.start()
        found = capped(corpus(utterances), context, max_items=1000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, peak

    (few, little), (many, more) = chosen(150), chosen(1500)
    for found in (few, many):
        assert 500 < len(found) <= 1000
    assert more < 1.5 * little


def test_what_is_compared_stays_together_and_the_order_makes_none():
    items = list(corpus(300))
    found = set(capped(items, "within", None, max_items=1000))
    places = {item[4:6] for item in found}
    # Of each pair of neighbours all items or none.
    assert found == {item for item in items if item[4:6] in places}
    backwards = set(capped(items[::-1], "within", None, max_items=1000))
    assert backwards == found
    other = set(capped(items, "within", None, max_items=1000, seed=1))
    assert other != found
    phones = capped(items, "any", 10, max_items=1000)
    assert len({item.speaker for item in phones}) == 20
    # Of 20 speakers, 10 each.
    assert len({item.phone for item in phones}) >= 5


def test_what_is_below_the_limits_is_all_there():
    _, items = made_up()
    assert capped(items, "any", None, max_items=len(items)) == items
    assert len({i.phone for i in capped(items, "any", max_phones=2)}) == 2
    # The first neighbours alone are more: they are taken.
    assert len(capped(items, "within", None, max_items=1)) == len(items) // 2
    with pytest.raises(TypeError, match="give a list"):
        capped(iter(items))


@pytest.mark.parametrize("speaker", ["within", "across"])
@pytest.mark.parametrize("context", ["within", "any"])
def test_comparisons_are_bounded_and_spread(speaker, context):
    items = capped(corpus(1500, speakers=5, phones=5), context)
    every = comparisons(items, speaker, context)
    some = comparisons(items, speaker, context, max_pairs=8_000)
    assert comparisons(items, speaker, context, max_pairs=10**9) == every
    assert some == comparisons(items, speaker, context, max_pairs=8_000)
    assert some != comparisons(items, speaker, context, seed=1, max_pairs=8_000)
    assert len(some.cells) < len(every.cells)
    assert sum(max(c.pairs, 400) for c in some.cells) <= 8_000
    assert 0 < some.triples < some.of == every.triples == every.of
    # No phone and speaker twice, where another is not there once.
    assert all(cell in every.cells for cell in some.cells)
    known = {cell[:2] for cell in every.cells}
    seen = {cell[:2] for cell in some.cells}
    assert len(seen) == min(len(known), len(some.cells))


def test_triples_are_counted_as_they_are():
    names = [("a", "x")] * 3 + [("b", "x")] * 2 + [("a", "y")] * 4
    items = [Item("f", 0, 1, p, "l", "r", who) for p, who in names]
    # X and A are two of three, or of two, and B of the others.
    within = comparisons(items, "within", "any")
    assert within.triples == within.of == 3 * 2 * 2 + 2 * 1 * 3
    # X by y, A and B by x: y says no b.
    assert comparisons(items, "across", "any").triples == 4 * 3 * 2


def test_neighbours_that_do_not_touch_are_none():
    phones = [(0.0, 0.1, "a"), (0.1, 0.2, "b"), (0.204, 0.3, "c")]
    made = make_items("u", phones, "s", triphones=True)
    assert [item[1:4] for item in made] == [(0.0, 0.3, "b")]
    for start in (0.21, 0.19, 5.0):
        phones[2] = (start, start + 0.1, "c")
        assert make_items("u", phones, "s", triphones=True) == []
        assert make_items("u", phones, "s", triphones=False) == []


def test_who_is_not_known_is_nobody(tmp_path):
    phones = [(i / 10, (i + 1) / 10, name) for i, name in enumerate("abcd")]
    entries = {
        "u": {"phones": phones, "spk_id": "ann"},
        "v": {"phones": phones},
    }
    found, told = choose_items(entries, None, 10)
    assert told == []
    for chosen in found.values():
        assert {item.file for item in chosen.items} == {"u"}
        assert chosen.of == 2 and "phones" in chosen.source
    path = tmp_path / "x.item"
    path.write_text("v 0 0.1 a b c bob\nw 0 0.1 a b c bob\n")
    found, told = choose_items(entries, path, 10)
    assert [item.speaker for item in found["within"].items] == ["bob"]
    assert found["within"].source == str(path)
    assert {item.speaker for item in found["any"].items} == {"ann"}
    assert "1 of 2 ABX items" in told[0] and told[0].endswith("w")
