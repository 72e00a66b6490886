"""Vocoders learn to speak what a tokenizer that does not learn gives them: a
HiFi-GAN its units, a source-filter vocoder its log-mels."""

import json
import types
from importlib import import_module

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_vq import VQTokenizer, export_pretrained
from speechbrain_vq.inference.vocoder_loading import load_vocoder
from speechbrain_vq.lobes.vocoder import SourceFilterVocoder
from speechbrain_vq.lobes.wavenet import WaveNetDecoder
from speechbrain_vq.nnet import ResidualVectorQuantizer
from speechbrain_vq.presets import BUNDLED_VOCODER
from tests.inference.conftest import build, make_run
from tests.recipe_tests.processes import finish, hyperparameters

__all__ = ["build", "make_run"]

UNITS, MELS = "MiniSpeech/unit-vocoder", "DebianSpeech/vocoder"
RATE, HOP = 16000, 160
# For the tokenizer of the tests.
OPTIONS = {
    UNITS: {
        **{"codebook_size": 32, "speaker_dim": 4, "segments": 4, "lr": 0.01},
        **{"number_of_steps": 36, "adversarial_start": 33, "samples": 1},
        **{"valid_utterances": 1, "longest": None, "minutes": None},
        "make_minispeech": None,
    },
    MELS: {
        **{"n_mels": 20, "channels": 32, "num_layers": 2, "segment": 0.4},
        **{"shortest": 0.2, "number_of_steps": 48, "lr_warmup": 2, "lr": 0.01},
        **{"anneal": 0.0, "pitch_weight": 1.0},
        "resolutions": [[512, 120, 400]],
    },
}
units, mels = (
    import_module(f"speechbrain_vq.recipes.{name.replace('/', '.')}.train")
    for name in (UNITS, MELS)
)
CPU = {"device": "cpu"}


def buzz(pitch, seconds):
    """Pulses of a pitch, through two formants."""
    time = np.arange(round(seconds * RATE)) / RATE
    waves = [
        np.cos(2 * np.pi * pitch * k * time) / (1 + abs(pitch * k - 700) / 200)
        for k in range(1, int(4000 / pitch))
    ]
    return np.sum(waves, 0) / 20


@pytest.fixture
def data(tmp_path):
    """Manifests of buzzing sounds, one shorter than a segment, one too short."""
    folder = tmp_path / "data"
    folder.mkdir()
    noise, items = np.random.default_rng(0), {}
    for number, seconds in enumerate((0.6, 0.8, 0.7, 0.5, 0.3, 0.1)):
        wav = buzz(110 + 25 * number, seconds)
        wav += noise.normal(size=len(wav)) / 1000
        soundfile.write(folder / f"{number}.wav", wav, RATE)
        items[f"utt{number}"] = {
            "wav": f"{{data_root}}/{number}.wav",
            "length": seconds,
            "spk_id": f"spk{number % 2}",
            "words": "",
        }
    for split in ("train", "valid", "test"):
        (folder / f"{split}.json").write_text(json.dumps(items))
    return folder


@pytest.fixture
def tokenizer(make_run, tmp_path):
    """The folder of a tokenizer."""
    return export_pretrained(make_run()[0], tmp_path / "tokenizer")


def load_units(**options):
    options = {**OPTIONS[UNITS], "data_folder": "x", **options}
    return hyperparameters(UNITS, output_folder="x", **options)


def said_by_units(folder, spoken, wav):
    """What the generator of the last checkpoint says."""
    # The one with the least loss may be kept beside it.
    checkpoint = max((folder / "save").glob("CKPT*/generator.ckpt"))
    generator = load_units()["generator"]
    generator.load_state_dict(torch.load(checkpoint, weights_only=True))
    tokens, _ = spoken.encode_batch(wav)
    speaker = spoken.speaker_batch(wav)
    return generator.eval()(tokens.unsqueeze(-1) + 1, spk=speaker)[0][:, 0]


def said_by_mels(folder, spoken, wav):
    """What the exported generator says."""
    features = mels.decoded_features(spoken, wav, 1)
    features = spoken.mods.features.denormalize(features)
    return load_vocoder(folder / "model").generator(features)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "recipe, metric, model, said, better, half",
    [
        (UNITS, "mel_l1", "vocoder", said_by_units, 0.85, 20),
        (MELS, "spectral_error", "model", said_by_mels, 0.2, 24),
    ],
    ids=["units", "mels"],
)
@torch.no_grad()
def test_it_learns_goes_on_and_speaks(
    recipe, metric, model, said, better, half, data, tokenizer, tmp_path
):
    options = {**OPTIONS[recipe], **CPU}
    options |= {"data_folder": data, "tokenizer": tokenizer}
    results, _ = finish(tmp_path, recipe, **options, output_folder="whole")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    errors = [
        float(line.split(f"valid {metric}: ")[1].split(",")[0])
        for line in (whole / "train_log.txt").read_text().splitlines()
        if f"valid {metric}" in line
    ]
    # The discriminators begin at the end, and first do harm.
    assert min(errors) < better * errors[0], errors
    assert results["step"] == options["number_of_steps"]
    assert results[f"griffin_lim_{metric}"] > 0

    # What was trained is what speaks.
    spoken = VQTokenizer.from_hparams(tokenizer, vocoder=whole / model, **CPU)
    wav = torch.from_numpy(soundfile.read(data / "0.wav")[0]).float()[None]
    tokens, lengths = spoken.encode_batch(wav)
    wavs = spoken.decode_batch(tokens, lengths, spoken.speaker_batch(wav))
    expected = said(whole, spoken, wav)
    torch.testing.assert_close(wavs, expected, rtol=0, atol=1e-5)

    # A run in two parts, of whole epochs, ends with the same bits.
    options["output_folder"] = "halves"
    finish(tmp_path, recipe, **{**options, "number_of_steps": half})
    finish(tmp_path, recipe, **options)
    one = load_vocoder(whole / model).state_dict()
    other = load_vocoder(halves / model).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    if recipe == UNITS:
        assert results["utterances"] == 6
        assert len(list((whole / "samples").glob("*.wav"))) == 3


# Units ----------------------------------------------------------------------


def test_no_more_is_validated_than_asked_for(data, tokenizer):
    hparams = load_units(data_folder=str(data), valid_utterances=3)
    model = VQTokenizer.from_hparams(tokenizer, run_opts=CPU)
    datasets = units.dataio_prep(hparams, data, model)
    assert len(datasets["valid"]) == 3 and len(datasets["test"]) == 6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"codebook_size": 512}, "requires --codebook_size=32"),
        ({"speaker_dim": 32}, "requires --speaker_dim=4"),
        (
            {
                "upsample_factors": [8, 8, 2, 2],
                "upsample_kernel_sizes": [16, 16, 4, 4],
            },
            "covers 320 samples.*is 256",
        ),
    ],
)
def test_a_yaml_for_another_tokenizer_is_reported(tokenizer, change, message):
    model = VQTokenizer.from_hparams(tokenizer, run_opts=CPU)
    with pytest.raises(ValueError, match=message):
        units.check_tokenizer(load_units(**change), model)


def begin(folder, tokenizer):
    """A Brain at the start of its test."""

    def loss(one, other):
        return (one[..., :960].std() - other[..., :960].std()).abs()

    hparams = {
        "spectrogram_loss": loss,
        "output_folder": str(folder),
        "samples": 1,
        "sample_rate": 16000,
        "train_logger": types.SimpleNamespace(log_stats=lambda *a, **k: None),
    }
    modules = {"generator": torch.nn.Linear(1, 1)}
    brain = units.VocoderBrain(modules, None, hparams, CPU)
    brain.tokenizer = tokenizer
    brain.on_stage_start(None)
    return brain


def batch_of(tokens):
    item = types.SimpleNamespace
    return item(
        id=["a/b"],
        tokens=item(data=tokens),
        sig=item(data=torch.rand(1, 1, 960)),
        speaker=item(data=torch.zeros(1, 4)),
    )


@pytest.mark.parametrize("kind", ["folded", "residual", "wavenet"])
def test_it_is_compared_with_griffin_lim_where_it_can(kind, build, tmp_path):
    quantizer = ResidualVectorQuantizer(1, 8, 32)
    tokenizer = build(quantizer if kind == "residual" else None)
    if kind == "wavenet":
        tokenizer.mods["decoder"] = WaveNetDecoder(8, 4, 320)
    brain = begin(tmp_path, tokenizer)
    tokens = tokenizer.sig_to_tokens(torch.rand(1, 16000))[:, :3]
    for _ in range(2):
        brain.test(batch_of(tokens), torch.rand(1, 1, 960))
    brain.on_stage_end(units.sb.Stage.TEST, 0.5)
    assert brain.results["utterances"] == 2
    names = {path.name for path in (tmp_path / "samples").iterdir()}
    kinds = {"speech", "vocoder"} | ({"griffin_lim"} - {kind})
    if kind == "wavenet":
        kinds.remove("griffin_lim")
        assert "griffin_lim_mel_l1" not in brain.results
    else:
        assert brain.results["griffin_lim_mel_l1"] >= 0
    assert names == {f"a_b.{name}.wav" for name in kinds}


# Log-mels -------------------------------------------------------------------


def test_a_run_starts_from_the_weights_of_another_vocoder():
    vocoder, source = SourceFilterVocoder(), str(BUNDLED_VOCODER)
    mels.start_from(vocoder, source)
    given = load_vocoder(source).generator.state_dict()
    state = vocoder.state_dict()
    assert all(torch.equal(given[key], state[key]) for key in state)
    with pytest.raises(ValueError, match="--channels.*must match it"):
        mels.start_from(SourceFilterVocoder(channels=8), source)


@pytest.mark.parametrize("pitch", [80.0, 123.0, 310.0])
def test_f0_is_tracked_at_the_middle_of_each_hop(pitch):
    wav = torch.from_numpy(buzz(pitch, 0.5)).float()
    wav = torch.cat([torch.zeros(8000), wav, torch.zeros(8000)])
    track = mels.track_f0(wav, RATE, HOP)
    assert len(track) == len(wav) // HOP
    assert (1200 * torch.log2(track[55:95] / pitch)).abs().max() < 20
    assert (track[:45] == 0).all() and (track[105:] == 0).all()


def test_the_contour_goes_on_through_what_has_no_voice():
    track = torch.tensor([[0.0, 100.0, 0.0, 400.0, 0.0], [0.0] * 5])
    contour, silent = (mels.filled(row) for row in track)
    wanted = torch.tensor([100.0, 100.0, 200.0, 400.0, 400.0])
    torch.testing.assert_close(contour, wanted)
    assert (silent == 150).all()


def test_the_spectral_error_does_not_depend_on_the_level():
    wavs, target = torch.randn(2, 2, 4000)
    resolutions = [[512, 120, 400], [256, 60, 200]]
    error = mels.spectral_error(wavs, target, resolutions)
    quiet = mels.spectral_error(wavs / 50, target / 50, resolutions)
    torch.testing.assert_close(quiet, error, rtol=1e-3, atol=0)
    assert mels.spectral_error(target, target, resolutions) == 0
    assert mels.spectral_error((wavs + target) / 2, target, resolutions) < error
