"""Probes, against scikit-learn, and what they must and must not find."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from speechbrain_vq.evaluation.intervals import PoissonBootstrap
from speechbrain_vq.evaluation.probes import (
    LinearProbes,
    cross_validate,
    fit_probe,
    sample_utterances,
    stratified_folds,
)
from speechbrain_vq.evaluation.utterances import Utterance

from .synthetic import spans


def test_a_probe_is_scikit_learns():
    x = torch.randn(200, 6, dtype=torch.float64)
    y = (x @ torch.randn(6, 4).double() + torch.randn(200, 4)).argmax(1)
    theirs = LogisticRegression(tol=1e-8, max_iter=1000)
    theirs.fit(x.numpy(), y.numpy())
    ours = fit_probe(x, y, 4)(x).softmax(1).numpy()
    assert ours == pytest.approx(theirs.predict_proba(x.numpy()), abs=1e-3)


def test_integers_are_inputs_that_are_one():
    codes = torch.randint(0, 5, (300, 2)) + torch.tensor([0, 5])
    y = (codes.sum(1) + torch.randint(0, 3, (300,))) % 3
    hot = torch.zeros(300, 10).scatter(1, codes, 1.0)
    sparse, dense = fit_probe(codes, y, 3), fit_probe(hot, y, 3)
    # A code that training has not seen says nothing.
    ones = sparse(codes), sparse(torch.tensor([[99, 98]]))
    others = dense(hot), dense(torch.zeros(1, 10))
    for one, other in zip(ones, others, strict=True):
        assert torch.allclose(one.softmax(1), other.softmax(1), atol=1e-2)


def test_what_is_held_out_is_not_known():
    """Labels without a cause cannot be told, however many inputs there are."""
    x, labels = torch.randn(60, 200), ["a", "b"] * 30
    right = cross_validate(x, labels, stratified_folds(labels))
    assert 0.2 < right.double().mean() < 0.8
    logits = fit_probe(x, torch.tensor([0, 1] * 30), 2)(x)
    assert torch.equal(logits.argmax(1), torch.tensor([0, 1] * 30))


def test_folds_share_out_each_group():
    fold = stratified_folds("aaaaabbbbbcc", 5)
    assert sorted(fold[:5].tolist()) == sorted(fold[5:10].tolist())
    assert fold[10] != fold[11]
    assert torch.equal(fold, stratified_folds("aaaaabbbbbcc", 5))


def utterances(tell_units, tell_latents, number=40):
    """Of two speakers, whom units or latents tell, and phones that both tell."""
    for i in range(number):
        speaker = i % 2
        phone = torch.randint(0, 2, (30,))
        tokens = 4 * torch.randint(0, 2, (30,)) + 2 * phone
        tokens += speaker if tell_units else torch.randint(0, 2, (30,))
        latents = 0.3 * torch.randn(30, 3)
        latents[:, 0] += phone
        latents[:, 1] += speaker if tell_latents else 0
        entry = {"spk_id": f"s{speaker}", "gender": "fm"[i // 2 % 2]}
        entry["phones"] = spans("ab"[p] for p in phone)
        given = f"utt-{i}", entry, tokens[:, None]
        yield Utterance(*given, 10.0, 3.0, latents)


def probes(*told):
    all_of_them = list(utterances(*told))
    names = {one.name for one in all_of_them}
    metric, draws = LinearProbes(names), PoissonBootstrap(50)
    # In any order.
    for one in reversed(all_of_them):
        metric.update(one, draws.weights(one.name))
    return metric.compute()


def test_a_metric_is_found_where_it_is():
    units = probes(True, False)
    assert units["speaker_from_units"].value == 1
    assert units["speaker_from_latents"].value < 0.8
    latents = probes(False, True)
    assert latents["speaker_from_units"].value < 0.8
    assert latents["speaker_from_latents"].value == 1
    assert latents["speaker_chance"].value == 0.5
    assert latents["gender_from_latents"].value < 0.8
    for found in (units, latents):
        assert found["phone_from_units"].value == 1
        # Errors of normals that are one apart, deviation .3: P(z > 1.67).
        share = found["phone_from_latents"].value
        assert share == pytest.approx(0.952, abs=0.02)
    value, low, high, _ = latents["speaker_from_units"]
    assert low < value < high


def test_only_what_is_known_is_probed():
    metric = LinearProbes({"utt-1"})
    tokens = torch.zeros(3, 1, dtype=torch.long)
    metric.update(Utterance("utt-1", {}, tokens, 10.0, 1.0), torch.ones(1))
    metric.update(Utterance("utt-2", {}, tokens, 10.0, 1.0), torch.ones(1))
    assert metric.compute() == {}


def test_a_choice_is_spread_over_speakers():
    manifest = {f"{s}-{i}": {"spk_id": s} for s in "abc" for i in range(9)}
    names = sample_utterances(manifest, max_speakers=2, max_utterances=4)
    assert len(names) == 8 and len({name[0] for name in names}) == 2
    assert names == sample_utterances(manifest, 2, 4)
    assert names != sample_utterances(manifest, 2, 4, seed=1)
    assert len(sample_utterances({name: {} for name in manifest}, 2, 4)) == 8
