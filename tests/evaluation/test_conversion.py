"""Converted speech: pairs, tokens that stay, and whose voice it has."""

from types import SimpleNamespace

import pytest
import soundfile
import torch

from speechbrain_vq import VQTokenizer
from speechbrain_vq.evaluation.conversion import (
    Conversion,
    conversion_pairs,
    token_agreement,
)
from speechbrain_vq.evaluation.utterances import EvaluatedModel, Utterance
from speechbrain_vq.lobes.speakers import SpeakerTable
from tests.commands import MINI

RATE = 1000
LEVELS = {"ann": 0.1, "bob": 0.3, "cy": 0.5}


@pytest.fixture
def manifest(tmp_path):
    """Three speakers, each of a level of their own, four utterances each: the
    signs are what is said."""
    draw, entries = torch.Generator().manual_seed(0), {}
    for speaker, level in LEVELS.items():
        for number in range(4):
            name = f"{speaker}/{number}"
            path = tmp_path / f"{speaker}-{number}.wav"
            signs = 2 * torch.randint(0, 2, (50,), generator=draw) - 1
            soundfile.write(path, (level * signs).numpy(), RATE)
            entries[name] = {"wav": str(path), "spk_id": speaker}
    return entries


def tokens_of(wav):
    return (wav > 0).long().unsqueeze(1)


def level(wav):
    return float(wav.abs().mean())


def judge(audio, sample_rate, entry):
    """Likeness of levels."""
    assert sample_rate == RATE and entry["spk_id"] in LEVELS
    output = level(audio["output"])
    names = "source", "target"
    return {f"to_{name}": -abs(output - level(audio[name])) for name in names}


def in_pairs(audio, sample_rate, entry):
    """The same, as numerators of different denominators."""
    scores = judge(audio, sample_rate, entry)
    return {
        "to_source": (3 * scores["to_source"], 3),
        "to_target": (scores["to_target"], 1),
    }


def model_of(convert):
    """A model that converts so."""
    return SimpleNamespace(
        convert=convert,
        tokens=tokens_of,
        sample_rate=RATE,
        beginning=lambda utterance: utterance,
    )


def estimate_all(manifest, convert, pairs=10, audio=None):
    chosen = conversion_pairs(manifest, pairs)
    judges = {"level": judge, "in_pairs": in_pairs}
    measure = Conversion(model_of(convert), manifest, chosen, judges, audio)
    for name, entry in manifest.items():
        wav = torch.from_numpy(soundfile.read(entry["wav"])[0]).float()
        one = Utterance(name, entry, tokens_of(wav), RATE, 0.5, wav=wav)
        measure.update(one, torch.ones(3).int())
    assert measure.number == len(chosen)
    values = {k: figure.value for k, figure in measure.compute().items()}
    closer = values["level:closer_to_target"]
    assert values["in_pairs:closer_to_target"] == closer
    return values


def test_pairs_are_of_other_speakers_and_never_twice(manifest):
    pairs = conversion_pairs(manifest, 1000)
    assert len({pair[:2] for pair in pairs}) == len(pairs) == 12 * 2
    for pair in pairs:
        assert manifest[pair.source]["spk_id"] != pair.speaker
        assert manifest[pair.voice]["spk_id"] == pair.speaker
        assert manifest[pair.target]["spk_id"] == pair.speaker
        assert pair.voice != pair.target
    some = conversion_pairs(manifest, 5)
    assert len(some) == 5 and some == conversion_pairs(manifest, 5)
    assert some != conversion_pairs(manifest, 5, seed=1)
    # The order of the manifest makes no difference.
    assert some == conversion_pairs(dict(reversed(manifest.items())), 5)


def test_only_voices_that_are_known_are_taken(manifest):
    pairs = conversion_pairs(manifest, 1000, speakers=["bob", "dan"])
    assert {pair.speaker for pair in pairs} == {"bob"} and len(pairs) == 8
    assert conversion_pairs(manifest, 9, speakers=["dan"]) == []
    # Without two speakers there are none, of two utterances one is both.
    assert conversion_pairs({"a": {"spk_id": "ann"}, "b": {}}, 5) == []
    pairs = conversion_pairs({"a": {"spk_id": "x"}, "b": {"spk_id": "y"}}, 5)
    assert {pair.target == pair.voice for pair in pairs} == {True}


def test_voices_may_be_those_of_another_manifest(manifest):
    others = {
        f"new-{name}": {**entry, "spk_id": f"{entry['spk_id']}2"}
        for name, entry in manifest.items()
        if entry["spk_id"] != "cy"
    }
    pairs = conversion_pairs(manifest, 1000, targets=others)
    assert {pair.speaker for pair in pairs} == {"ann2", "bob2"}
    assert {pair.source for pair in pairs} == set(manifest)
    assert all({pair.voice, pair.target} <= set(others) for pair in pairs)
    assert conversion_pairs(manifest, 9, targets={}) == []


def test_a_voice_known_by_name_is_not_heard():
    """As that of a model with a table of speakers."""
    tokenizer = VQTokenizer.from_hparams(MINI, device="cpu")
    size = tokenizer.mods.speaker.output_dim
    tokenizer.mods["speaker"] = SpeakerTable(3, size)
    tokenizer.mods.speaker.fill(["ann", "bob"])
    model = EvaluatedModel(tokenizer)
    assert model.tokenizer.speakers == ["ann", "bob"]
    wav = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    tokens = model.tokens(wav)
    one = Utterance("u", {"spk_id": "ann"}, tokens, 50.0, 0.5, wav=wav)
    ann, bob = (model.convert(one, wav, name) for name in ("ann", "bob"))
    assert len(ann) == len(wav) and not torch.allclose(ann, bob, atol=1e-3)


def test_tokens_and_voice_are_kept_taken_over_or_lost(manifest):
    unchanged = estimate_all(manifest, lambda u, voice, speaker: u.wav)
    assert unchanged["token_agreement"] == 1
    assert unchanged["level:closer_to_target"] == 0
    assert unchanged["level:to_source"] == 0
    ideal = estimate_all(manifest, lambda u, v, _: u.wav.sign() * level(v))
    assert ideal["token_agreement"] == 1
    assert ideal["level:closer_to_target"] == 1
    assert ideal["level:to_target"] == pytest.approx(0, abs=1e-4)
    assert ideal["level:to_source"] < -0.1
    # What plays the target says something else.
    other = estimate_all(manifest, lambda u, voice, speaker: voice)
    assert other["level:closer_to_target"] == 1
    assert 0.3 < other["token_agreement"] < 0.7
    for estimates in (unchanged, ideal, other):
        assert estimates["token_agreement_own_voice"] == 1


def test_lost_frames_and_other_codebooks_count():
    source = torch.tensor([[1, 1], [2, 2], [3, 3], [4, 4]])
    other = torch.tensor([[1, 1], [2, 0], [3, 3]])
    assert token_agreement(source, other) == (2, 4)
    assert token_agreement(other, source) == (2, 4)
    assert token_agreement(source, source[:0]) == (0, 4)


def test_recordings_can_be_listened_to(manifest, tmp_path):
    folder = tmp_path / "new" / "audio"
    estimate_all(manifest, lambda utterance, voice, speaker: -voice, 3, folder)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 9
    pair = conversion_pairs(manifest, 3)[0]
    stem = pair.source.replace("/", "-")
    assert f"001-output-{stem}-as-{pair.speaker}.wav" in names
    target = pair.target.replace("/", "-")
    wav, rate = soundfile.read(folder / f"001-target-{target}.wav")
    original, _ = soundfile.read(manifest[pair.target]["wav"])
    assert rate == RATE and (wav == original).all()


def test_a_target_that_cannot_be_read_is_named(manifest):
    pairs = conversion_pairs(manifest, 1)
    broken = manifest | {pairs[0].voice: {"wav": "nowhere.wav"}}
    measure = Conversion(model_of(lambda u, v, s: v), broken, pairs, {})
    name = pairs[0].source
    wav = torch.ones(50)
    one = Utterance(name, broken[name], tokens_of(wav), RATE, 0.5, wav=wav)
    measure.update(one, torch.ones(1).int())
    assert measure.number == 0 and measure.compute() == {}
    assert "nowhere.wav" in str(measure.errors)
