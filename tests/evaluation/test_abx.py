"""ABX, against brute force, fastabx and what must hold."""

import collections
import functools
import itertools
import math

import pytest
import torch

from speechbrain_vq.dataio.items import Item
from speechbrain_vq.evaluation import abx
from speechbrain_vq.evaluation.abx import abx_error, angular, make_cells
from speechbrain_vq.evaluation.abx_items import subsample
from speechbrain_vq.evaluation.dtw import dtw

from .synthetic import corpus, synthetic_items, units_of

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


def error(features, items, speaker, context, distance=angular):
    cells = make_cells(items, speaker, context, max_x_across=None)
    return float(abx_error(features, items, cells, distance)[0])


def brute_force(features, items, speaker, context, distance):
    """By the definition, triple by triple."""

    @functools.cache
    def apart(i, j):
        costs = distance(features[i], features[j])[None]
        sizes = (torch.tensor([len(features[k])]) for k in (i, j))
        return float(dtw(costs, *sizes))

    every, cells = range(len(items)), collections.defaultdict(list)
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
        cells[key].append(wrong)
    level = {key: sum(v) / len(v) for key, v in cells.items()}
    while level and next(iter(level)):
        groups = collections.defaultdict(list)
        for key, value in level.items():
            groups[key[:-1] if len(key) > 2 else ()].append(value)
        level = {key: sum(v) / len(v) for key, v in groups.items()}
    return level[()]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_it_is_brute_forces(condition):
    features, items = synthetic_items(noise=1.5)
    # As many as brute force can bear, and not as many in each cell.
    some = [i for i in range(len(items)) if i % 7 in (0, 1, 3)][:40]
    features, items = [features[i] for i in some], [items[i] for i in some]
    units = units_of(features)
    for given, distance in (
        (features, angular),
        (units, abx.identity),
        ([torch.cat([one, one // 3], 1) for one in units], abx.identity),
    ):
        expected = brute_force(given, items, *condition, distance)
        found = error(given, items, *condition, distance)
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("of, seed, noise", FASTABX)
def test_it_is_what_fastabx_gave(of, seed, noise):
    features, items = synthetic_items(seed, noise)
    distance = angular
    if of == "units":
        features, distance = units_of(features), abx.identity
    ours = [error(features, items, *c, distance) for c in CONDITIONS]
    assert ours == pytest.approx(FASTABX[of, seed, noise], abs=2e-6)


def test_a_weight_of_none_is_not_having_it():
    _, items = synthetic_items()
    keep = [k for k, i in enumerate(items) if i.speaker == "s0"][:18]
    items = [items[k] for k in keep]
    features = [torch.randn(4, 5) for _ in items]
    weights = torch.ones(len(items), 2)
    weights[3:6, 1] = 0
    cells = make_cells(items, "within", "any")
    both = abx_error(features, items, cells, weights=weights)
    rest = features[:3] + features[6:], items[:3] + items[6:]
    without = error(*rest, "within", "any")
    assert float(both[1]) == pytest.approx(without, abs=1e-6)
    everything = error(features, items, "within", "any")
    assert float(both[0]) == pytest.approx(everything, abs=1e-6)
    assert everything != pytest.approx(without, abs=1e-3)


def test_nothing_to_compare_is_no_number():
    items = [Item("f", 0, 1, "a", "b", "c", "s")] * 2
    assert math.isnan(error([torch.ones(1, 2)] * 2, items, "within", "any"))
    assert torch.isnan(abx_error([torch.ones(1, 2)] * 2, items, [])).all()
    assert torch.isnan(abx_error([], [], [])).all()


def test_angles_are_over_pi():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    y = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([[0.0, 0.5, 1.0, 0.25], [0.5] * 4])
    assert torch.allclose(angular(x, y), expected, atol=1e-6)


@pytest.mark.parametrize("speaker", ["within", "across"])
@pytest.mark.parametrize("context", ["within", "any"])
def test_cells_are_bounded_and_spread(speaker, context):
    items = subsample(corpus(1500, speakers=5, phones=5), context)
    every = make_cells(items, speaker, context)
    some = make_cells(items, speaker, context, max_pairs=8_000)
    assert make_cells(items, speaker, context, max_pairs=10**9) == every
    assert some == make_cells(items, speaker, context, max_pairs=8_000)
    assert some != make_cells(items, speaker, context, seed=1, max_pairs=8_000)
    assert len(some) < len(every)
    assert sum(max(c.pairs, 400) for c in some) <= 8_000
    # No phone and speaker twice, where another is not there once.
    assert all(cell in every for cell in some)
    known = {cell[:2] for cell in every}
    seen = {cell[:2] for cell in some}
    assert len(seen) == min(len(known), len(some))
