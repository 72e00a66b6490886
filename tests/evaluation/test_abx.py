"""ABX, against brute force, fastabx and what must hold.

Authors
 * speechbrain_vq authors 2026
"""

import functools
import itertools

import pytest
import torch

from speechbrain_vq.evaluation.abx import abx, angular, identity
from speechbrain_vq.evaluation.choice import capped
from speechbrain_vq.evaluation.dtw import dtw
from speechbrain_vq.evaluation.fast_abx import fastabx_error
from speechbrain_vq.evaluation.items import (
    Item,
    frames_of,
    make_items,
    read_items,
)

from .made_up import made_up, units_of

CONDITIONS = list(itertools.product(("within", "across"), ("within", "any")))
# What fastabx 0.9.0 (torchdtw 0.4.2) gave for these features, written to files
# and read with an item file: no caps, 50 Hz, angular; of their units, identical.
FASTABX = {
    ("vectors", 0, 1.0): (0.0294753, 0.0356692, 0.0655864, 0.0742027),
    ("vectors", 1, 0.6): (0.0, 0.0, 0.0009002, 0.0007073),
    ("vectors", 2, 1.5): (0.2140432, 0.2375491, 0.2463349, 0.2520737),
    ("units", 0, 1.0): (0.1956790, 0.2090523, 0.2390046, 0.2378713),
    ("units", 2, 1.5): (0.4415895, 0.4484428, 0.4342528, 0.4493313),
}


def error(features, items, *condition, **options):
    options.setdefault("max_x_across", None)
    return float(abx(features, items, *condition, **options)[0])


def brute_force(features, items, speaker, context, distance):
    """By the definition, triple by triple."""

    @functools.cache
    def apart(i, j):
        costs = distance(features[i], features[j])[None]
        sizes = (torch.tensor([len(features[k])]) for k in (i, j))
        return float(dtw(costs, *sizes))

    every, cells = range(len(items)), {}
    for x, a, b in itertools.product(every, every, every):
        ix, ia, ib = items[x], items[a], items[b]
        same = ix.speaker == ia.speaker
        if x == a or ia.phone != ix.phone or ib.phone == ia.phone:
            continue
        if ia.speaker != ib.speaker or same != (speaker == "within"):
            continue
        places = {(i.before, i.after) for i in (ix, ia, ib)}
        if context == "within" and len(places) > 1:
            continue
        to_a, to_b = apart(x, a), apart(x, b)
        wrong = 0.5 if to_a == to_b else float(to_b < to_a)
        place = (ix.before, ix.after) if context == "within" else None
        key = ia.phone, ib.phone, ia.speaker, (place, ix.speaker)
        cells.setdefault(key, []).append(wrong)
    level = {key: sum(v) / len(v) for key, v in cells.items()}
    while level and next(iter(level)):
        groups = {}
        for key, value in level.items():
            groups.setdefault(key[:-1] if len(key) > 2 else (), []).append(
                value
            )
        level = {key: sum(v) / len(v) for key, v in groups.items()}
    return level[()]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_it_is_brute_forces(condition):
    features, items = made_up(noise=1.5)
    # As many as brute force can bear, and not as many in each cell.
    some = [i for i in range(len(items)) if i % 7 in (0, 1, 3)][:40]
    features, items = [features[i] for i in some], [items[i] for i in some]
    assert error(features, items, *condition) == pytest.approx(
        brute_force(features, items, *condition, angular), abs=1e-6
    )
    units = units_of(features)
    assert error(units, items, *condition, identity) == pytest.approx(
        brute_force(units, items, *condition, identity), abs=1e-6
    )


@pytest.mark.parametrize("of, seed, noise", FASTABX)
def test_it_is_what_fastabx_gave(of, seed, noise):
    features, items = made_up(seed, noise)
    distance = angular
    if of == "units":
        features, distance = units_of(features), identity
    ours = [error(features, items, *c, distance) for c in CONDITIONS]
    assert ours == pytest.approx(FASTABX[of, seed, noise], abs=2e-6)


def test_it_is_fastabxs_where_that_is_installed():
    pytest.importorskip("fastabx")
    features, items = made_up(5)
    for condition in CONDITIONS:
        theirs = fastabx_error(features, items, *condition, max_x_across=None)
        assert error(features, items, *condition) == pytest.approx(
            theirs, abs=1e-4
        )
        units = units_of(features)
        theirs = fastabx_error(
            units, items, *condition, "identical", max_x_across=None
        )
        assert error(units, items, *condition, identity) == pytest.approx(
            theirs, abs=1e-4
        )


@pytest.mark.parametrize("condition", CONDITIONS)
def test_what_is_all_the_same_is_at_chance_and_what_is_apart_is_right(
    condition,
):
    features, items = made_up()
    same = [torch.ones(4, 3) for _ in items]
    assert error(same, items, *condition) == 0.5
    directions = torch.eye(3)
    apart = [directions[int(i.phone[1])].expand(5, 3) for i in items]
    assert error(apart, items, *condition) == 0.0
    units = [torch.full((3, 1), int(i.phone[1])) for i in items]
    assert error(units, items, *condition, identity) == 0.0


def test_speakers_matter_only_across():
    """Each speaker says phones another way round: right within, wrong across."""
    _, items = made_up()
    turned = [
        torch.eye(3)[(int(i.phone[1]) + int(i.speaker[1])) % 3].expand(4, 3)
        for i in items
    ]
    assert error(turned, items, "within", "any") == 0.0
    # X is never near A, and near B for one of the two phones: 1 and .5.
    assert error(turned, items, "across", "any") == 0.75


def test_rotation_and_loudness_change_nothing():
    features, items = made_up(noise=1.5)
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    changed = [3.7 * f @ turn for f in features]
    for condition in CONDITIONS:
        assert error(changed, items, *condition) == pytest.approx(
            error(features, items, *condition), abs=2e-3
        )


def test_renaming_codes_changes_nothing_and_codebooks_count_alike():
    features, items = made_up()
    units = units_of(features)
    order = torch.randperm(6)
    base = error(units, items, "across", "any", identity)
    renamed = [order[u] for u in units]
    twice = [u.expand(-1, 2) for u in units]
    assert error(renamed, items, "across", "any", identity) == base
    assert error(twice, items, "across", "any", identity) == base


def test_a_weight_of_none_is_not_having_it():
    _, items = made_up()
    keep = [k for k, i in enumerate(items) if i.speaker == "s0"][:18]
    items = [items[k] for k in keep]
    features = [torch.randn(4, 5) for _ in items]
    weights = torch.ones(len(items), 2)
    weights[3:6, 1] = 0
    both = abx(features, items, "within", "any", weights=weights)
    rest = [k for k in range(len(items)) if not 3 <= k < 6]
    without = error(
        [features[k] for k in rest], [items[k] for k in rest], "within", "any"
    )
    assert float(both[1]) == pytest.approx(without, abs=1e-6)
    everything = error(features, items, "within", "any")
    assert float(both[0]) == pytest.approx(everything, abs=1e-6)
    assert everything != pytest.approx(without, abs=1e-3)


def test_nothing_to_compare_is_no_number():
    items = [Item("f", 0, 1, "a", "b", "c", "s")] * 2
    assert error([torch.ones(1, 2)] * 2, items, "within", "any") != 0
    assert torch.isnan(abx([torch.ones(1, 2)] * 2, items)).all()
    assert torch.isnan(abx([], [])).all()


def test_angles_are_over_pi():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    y = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([[0.0, 0.5, 1.0, 0.25], [0.5] * 4])
    assert torch.allclose(angular(x, y), expected, atol=1e-6)


def test_frames_are_those_whose_middle_is_in_the_item():
    def frames(onset, offset, rate):
        found = frames_of(Item("f", onset, offset, *"abcs"), rate)
        return list(range(found.start, found.stop))

    assert frames(0.0, 0.1, 50) == [0, 1, 2, 3, 4]
    assert frames(0.009, 0.051, 50) == [0, 1, 2]
    assert frames(0.011, 0.049, 50) == [1]
    # Middles on the edges are in, whatever binary fractions say.
    assert frames(0.07, 0.29, 50) == list(range(3, 15))
    assert frames(0.051, 0.055, 50) == []


def test_item_files_are_read_or_refused(tmp_path):
    path = tmp_path / "x.item"
    path.write_text("#file onset offset #phone\nutt 0.1 0.35 a b c ann\n\n")
    assert list(read_items(path)) == [
        Item("utt", 0.1, 0.35, "a", "b", "c", "ann")
    ]
    for bad in ("utt 0.1 a b c ann", "utt 0.1 x a b c ann", "utt 0.1 0.2 a"):
        path.write_text(bad + "\n")
        with pytest.raises(ValueError, match="x.item, line 1: an item has"):
            list(read_items(path))


def test_items_are_made_as_the_recipes_make_them():
    from speechbrain_vq.dataio import manifests

    names = ["SIL", "a", "b", "c", "d", "SIL", "e", "f"]
    phones = [(i / 10, (i + 1) / 10, n) for i, n in enumerate(names)]
    made = make_items("utt", phones, "ann", triphones=True)
    text = manifests._item_file({"utt": {"phones": phones, "spk_id": "ann"}})
    lines = [line.split() for line in text.splitlines()[1:]]
    assert lines == [[str(field) for field in item] for item in made]
    alone = make_items("utt", phones, "ann", triphones=False)
    assert [i[1:4] for i in alone] == [(0.2, 0.3, "b"), (0.3, 0.4, "c")]


def test_caps_bound_groups_and_speakers():
    _, items = made_up()
    few = capped(items, "within", 2)
    assert len(few) == 3 * 2 * 3 * 2 and set(few) <= set(items)
    assert len(capped(items, "any", 2)) == 3 * 3 * 2
    assert len({i.speaker for i in capped(items, "any", 2, 1)}) == 1
    assert capped(few, "within", 2) == few
    assert capped(items, "within", 2) == few
    assert capped(items, "within", 2, seed=1) != few
    assert sorted(capped(items, "any", None)) == sorted(items)
