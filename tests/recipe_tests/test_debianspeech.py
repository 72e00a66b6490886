"""The speech of Debian's packages is prepared from the packages or what was
unpacked of them, and two voices are held out."""

import types
from importlib import import_module

import pytest
import soundfile
import torch

from speechbrain_vq import VQTokenizer
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import SPLITS, data_root
from speechbrain_vq.inference.vocoder_loading import load_vocoder
from speechbrain_vq.presets import BUNDLED_VOCODER, bundled
from speechbrain_vq.recipes.DebianSpeech.debianspeech_prepare import prepare
from tests.recipe_tests.phone_corpora import (
    debianspeech_files,
    make_debianspeech,
    read,
    write,
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("debian") / "packages"
    make_debianspeech(folder)
    return folder


def test_packages_and_what_was_unpacked_give_the_same(packages, tmp_path):
    manifests = read(prepare(packages, tmp_path / "packed"))
    for files in debianspeech_files().values():
        write(tmp_path / "root", files)
    unpacked = prepare(tmp_path / "root", tmp_path / "unpacked")
    assert read(unpacked) == manifests
    spoken = {k: v for s in SPLITS for k, v in manifests[s].items()}
    for item in spoken.values():
        info = soundfile.info(item["wav"].format(data_root=data_root(unpacked)))
        assert info.samplerate == 16000
        assert info.duration == pytest.approx(item["length"], abs=1e-3)
    # Neither letters, silence, tones and music nor what is empty.
    prompts = {k for k in spoken if k.startswith("Allison-en")}
    assert prompts == {f"Allison-en-digits/{i}" for i in range(40)}
    assert spoken["Allison-en-digits/7"]["words"] == "Say digits/7 ."
    assert spoken["nsh-ru-ru_0001"]["lang"] == "ru"
    # Single phrases are joined.
    lengths = [v["length"] for k, v in spoken.items() if "tux_fr" in k]
    assert len(lengths) == 8 and min(lengths) > 5


def test_voices_are_held_out(packages, tmp_path):
    manifests = read(prepare(packages, tmp_path))
    voices = {s: {u["spk_id"] for u in manifests[s].values()} for s in SPLITS}
    assert {"Carlo", "tux_es"} <= voices["test"]
    assert voices["train"].isdisjoint(["Carlo", "tux_es"])
    assert {"Allison", "June", "nsh", "tux_fr"} <= voices["train"]


def test_missing_packages_are_named_with_the_way_to_get_them(tmp_path):
    (tmp_path / "festvox-ru_1.0_all.deb").touch()
    with pytest.raises(FileNotFoundError) as error:
        prepare(tmp_path, tmp_path / "out")
    assert "apt-get download asterisk-core-sounds-en-g722" in str(error.value)
    assert "lacks festvox-ru" not in str(error.value)


def test_the_codec_is_penalized_for_another_pitch_not_for_padding():
    """More than for an error of the log-mels of the same size."""
    codec = import_module(
        "speechbrain_vq.recipes.DebianSpeech.speech-codec.train"
    )
    features = VQTokenizer.from_hparams("speech").mods.features
    vocoder = load_vocoder(BUNDLED_VOCODER).generator
    brain = types.SimpleNamespace(
        modules=types.SimpleNamespace(features=features), vocoder=vocoder
    )
    wav = read_audio(f"{bundled('speech')}/example.wav", 16000)[16000:40000]
    mels, lengths = features(wav.unsqueeze(0), torch.ones(1))

    def loss(decoded, mels=mels, lengths=lengths):
        return codec.CodecBrain.pitch_divergence(brain, mels, decoded, lengths)

    controls = vocoder.controls(features.denormalize(mels))
    pitch = codec.functional.interpolate(
        torch.tensor([[[90.0, 240.0]]]), mels.shape[1]
    )[0]
    other = vocoder.synthesize(controls, pitch)
    shifted, _ = features(other, torch.ones(1))
    error = shifted - mels
    blurred = mels + error.roll(60, 1) * torch.randn_like(error).sign()
    assert loss(mels) == pytest.approx(0.0, abs=1e-6)
    assert loss(shifted) > 3 * loss(blurred) > 0
    # A frame after the end counts only through the network's context.
    longer, number = torch.cat([mels, mels], 1), mels.shape[1]
    changed = longer.clone()
    changed[:, number + 60 :] = shifted[:, 60:]
    half = loss(changed, longer, torch.tensor([0.5]))
    assert half < 0.05 * loss(changed, longer, torch.ones(1))
