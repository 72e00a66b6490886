"""ABX items: read, made of phones, and subsampled."""

import math

import pytest

from speechbrain_vq.dataio.items import Item, make_items, read_items
from speechbrain_vq.evaluation import abx_items
from speechbrain_vq.evaluation.abx_items import frames_of, subsample

from .synthetic import corpus, spans, synthetic_items


def test_items_to_compare_stay_together_in_any_order():
    items = corpus(300)
    found = set(subsample(items, "within", math.inf, max_items=1000))
    places = {item[4:6] for item in found}
    # Of each pair of neighbours all items or none.
    assert found == {item for item in items if item[4:6] in places}
    assert (
        set(subsample(items[::-1], "within", math.inf, max_items=1000)) == found
    )
    other = set(subsample(items, "within", math.inf, max_items=1000, seed=1))
    assert other != found
    phones = subsample(items, "any", 10, max_items=1000)
    assert len({item.speaker for item in phones}) == 20
    # Of 20 speakers, 10 each.
    assert len({item.phone for item in phones}) >= 5


def test_below_the_limits_nothing_is_left_out():
    _, items = synthetic_items()
    assert subsample(items, "any", math.inf, max_items=len(items)) == items
    assert (
        len({i.speaker for i in subsample(items, "any", max_speakers=2)}) == 2
    )
    # The first neighbours alone are more: they are taken.
    few = subsample(items, "within", math.inf, max_items=1)
    assert len(few) == len(items) // 2


def test_neighbours_touch():
    phones = [(0.0, 0.1, "a"), (0.1, 0.2, "b"), (0.204, 0.3, "c")]
    made = make_items("u", phones, "s", triphones=True)
    assert [item[1:4] for item in made] == [(0.0, 0.3, "b")]
    for start in (0.21, 0.19, 5.0):
        phones[2] = (start, start + 0.1, "c")
        assert make_items("u", phones, "s", triphones=True) == []
        assert make_items("u", phones, "s", triphones=False) == []


def test_utterances_without_a_speaker_have_no_items(tmp_path):
    phones = spans("abcd")
    entries = {"u": {"phones": phones, "spk_id": "ann"}}
    entries["v"] = {"phones": phones}
    items, (note,) = abx_items.sample_items(entries)
    assert note.startswith("ABX items of 1 of 2 utterances with phones")
    for chosen in items.values():
        assert {item.file for item in chosen.items} == {"u"}
        assert chosen.total == 2 and "phones" in chosen.source
    path = tmp_path / "x.item"
    path.write_text("v 0 0.1 a b c bob\nw 0 0.1 a b c bob\n")
    items, notes = abx_items.sample_items(entries, path)
    assert [item.speaker for item in items["within"].items] == ["bob"]
    assert items["within"].source == str(path)
    assert {item.speaker for item in items["any"].items} == {"ann"}
    assert "1 of 2 ABX items" in notes[0] and notes[0].endswith("w")


def test_frames_are_those_whose_middle_is_in_the_item():
    def frames(onset, offset, rate):
        selected = frames_of(Item("f", onset, offset, *"abcs"), rate)
        return list(range(selected.start, selected.stop))

    assert frames(0.0, 0.1, 50) == [0, 1, 2, 3, 4]
    assert frames(0.009, 0.051, 50) == [0, 1, 2]
    assert frames(0.011, 0.049, 50) == [1]
    # Middles on the edges are in, whatever binary fractions say.
    assert frames(0.07, 0.29, 50) == list(range(3, 15))
    assert frames(0.051, 0.055, 50) == []


def test_item_files_are_read_or_refused(tmp_path):
    path = tmp_path / "x.item"
    path.write_text("#file onset offset #phone\nutt 0.1 0.35 a b c ann\n\n")
    (item,) = read_items(path)
    assert item == Item("utt", 0.1, 0.35, "a", "b", "c", "ann")
    for bad in ("utt 0.1 a b c ann", "utt 0.1 x a b c ann", "utt 0.1 0.2 a"):
        path.write_text(bad + "\n")
        with pytest.raises(ValueError, match="x.item, line 1: an item has"):
            list(read_items(path))


def test_caps_bound_groups_and_speakers():
    _, items = synthetic_items()
    few = subsample(items, "within", 2)
    assert len(few) == 3 * 2 * 3 * 2 and set(few) <= set(items)
    assert len(subsample(items, "any", 2)) == 3 * 3 * 2
    assert len({i.speaker for i in subsample(items, "any", 2, 1)}) == 1
    assert (
        subsample(few, "within", 2) == few
        and subsample(items, "within", 2) == few
    )
    assert subsample(items, "within", 2, seed=1) != few
    assert sorted(subsample(items, "any", math.inf)) == sorted(items)
