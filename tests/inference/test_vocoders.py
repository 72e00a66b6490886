"""HiFi-GANs of SpeechBrain speak for a tokenizer, or it is said why not."""

import json
import math
import pathlib
import re
import warnings
from importlib import import_module

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import save_file
from speechbrain.inference.vocoders import HIFIGAN, UnitHIFIGAN
from speechbrain.lobes.models.HifiGAN import (
    HifiganGenerator,
    UnitHifiganGenerator,
    mel_spectrogram,
)

from speechbrain_vq import VQTokenizer, export_pretrained
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import read_json
from speechbrain_vq.hub.folder import read_checkpoint
from speechbrain_vq.hub.plain import UnsafeHparamsError
from speechbrain_vq.inference import vocoders
from speechbrain_vq.inference.vocoder_loading import load_vocoder
from speechbrain_vq.inference.vocoders import HifiGAN, UnitVocoder
from speechbrain_vq.lobes.features import LogMel
from speechbrain_vq.lobes.vocoder import SourceFilterVocoder
from speechbrain_vq.lobes.wavenet import WaveNetDecoder
from tests.commands import MINI, cli
from tests.hub.small_model import Touch, read_files
from tests.lobes.encoders import ECAPA, build_speaker
from tests.publish.runs import YAML, write_run

EXPORTED = pathlib.Path(__file__).parents[1] / "hub/exported"
RATE, HOP, MELS = 16000, 256, 20
CPU = {"device": "cpu"}
# As the vocoders that SpeechBrain published: what they hear is not said.
VOCODER = """
inference_padding: 5
generator: !new:speechbrain.lobes.models.HifiGAN.HifiganGenerator
    in_channels: 20
    out_channels: 1
    resblock_type: "2"
    resblock_dilation_sizes: [[1, 3]]
    resblock_kernel_sizes: [3]
    upsample_kernel_sizes: [16, 16, 8]
    upsample_initial_channel: 16
    upsample_factors: [8, 8, 4]
    inference_padding: !ref <inference_padding>

modules:
    generator: !ref <generator>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        generator: !ref <generator>
"""
SAYS = """
sample_rate: 16000
win_length: 1024
n_fft: 1024
mel_fmin: 0.0
mel_fmax: 8000
"""
UNITS = (EXPORTED / "unit_vocoder/hyperparams.yaml").read_text()
OLD_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def write_vocoder(folder, text=SAYS + VOCODER, change=lambda state: state):
    """A vocoder as SpeechBrain's are on the Hub, with the names of tensors
    that PyTorch gave in 2022."""
    folder.mkdir(parents=True)
    (folder / "hyperparams.yaml").write_text(text)
    torch.manual_seed(1)
    state = load_hyperpyyaml(VOCODER)["generator"].state_dict()
    state = {
        re.sub("|".join(OLD_NAMES), lambda m: OLD_NAMES[m[0]], key): value
        for key, value in state.items()
    }
    assert any(key.endswith("weight_g") for key in state)
    torch.save(change(state), folder / "generator.ckpt")
    return folder


def test_only_tensors_of_weight_norm_are_renamed(tmp_path):
    names = "a.weight_g", "a.weight_v", "a.weight_gain", "weight_v.bias"
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "x.ckpt")
    norm = "m.a.parametrizations.weight.original"
    others = {"m.a.weight_gain", "m.weight_v.bias"}
    renamed = read_checkpoint(tmp_path / "x.ckpt", "m")
    assert renamed.keys() == {f"{norm}0", f"{norm}1", *others}


def write_units(folder, tokenizer, **other):
    """A unit vocoder, as the recipe exports it."""
    values = {**vocoders.unit_settings(tokenizer), **other}
    size = values["codebook_size"] * values["num_codebooks"] + 1
    text = UNITS
    for key, value in {**values, "    vocab_size": size}.items():
        text = re.sub(f"^{key}: .*", f"{key}: {value}", text, flags=re.M)
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(text)
    state = torch.nn.ModuleDict(load_hyperpyyaml(text)["modules"]).state_dict()
    save_file(state, folder / "model.safetensors")
    return folder


def load_speaker(folder):
    recipe = import_module("speechbrain_vq.recipes.VCTK.voice-conversion.train")
    recipe.load_encoder(build_speaker(ECAPA), folder / "generator.ckpt")


@pytest.fixture
def vocoder(tmp_path):
    return write_vocoder(tmp_path / "vocoder")


@pytest.fixture
def matching(tmp_path):
    """The folder of a tokenizer with the log-mels of that vocoder."""
    sizes = "n_mels: 20", "win_length: 1024", f"hop_length: {HOP}"
    yaml = YAML.replace("n_mels: 20", "\n        ".join(sizes))
    yaml = yaml.replace("token_rate: 50.0", f"token_rate: {RATE / HOP / 2}")
    run, _ = write_run(tmp_path / "run256", yaml=yaml)
    return export_pretrained(run, tmp_path / "model256")


@pytest.fixture
def spoken(matching, vocoder):
    """A tokenizer with its vocoder."""
    return VQTokenizer.from_hparams(matching, vocoder=vocoder, run_opts=CPU)


# ---- what goes in


@pytest.mark.parametrize("n_mels", [20, 80])
def test_denormalized_features_are_the_log_mels_of_speechbrain(n_mels):
    speech = read_audio(pathlib.Path(MINI, "example.wav"), RATE)
    features = LogMel(n_mels=n_mels, win_length=1024, hop_length=HOP)
    features.fit([speech.unsqueeze(0)])
    normalized, _ = features(speech.unsqueeze(0), torch.ones(1))
    ours = features.denormalize(normalized)[0]
    theirs = mel_spectrogram(
        sample_rate=RATE,
        hop_length=HOP,
        win_length=1024,
        n_fft=1024,
        n_mels=n_mels,
        f_min=0.0,
        f_max=8000,
        power=1,
        normalized=False,
        norm="slaney",
        mel_scale="slaney",
        compression=True,
        # Their first frame is centred on the first sample, ours on the
        # middle of its hop.
        audio=speech[HOP // 2 :],
    ).T
    assert len(ours) > 100 and ours[2:-2].std() > 1
    theirs = theirs[2 : len(ours) - 2]
    torch.testing.assert_close(ours[2:-2], theirs, rtol=0, atol=1e-4)


# ---- what comes out


def test_it_says_what_speechbrain_makes_of_the_same_log_mels(vocoder, tmp_path):
    mels = torch.randn(2, 30, MELS)
    theirs = HIFIGAN.from_hparams(vocoder, savedir=tmp_path / "stock")
    theirs = theirs.decode_batch(mels.transpose(1, 2))[:, 0]
    assert theirs.shape == (2, (30 + 2 * 5) * HOP) and theirs.std() > 1e-4
    ours = load_vocoder(vocoder)(mels)
    assert ours.shape == (2, 30 * HOP)
    # Less the frames that it adds, and on the middle of our hops.
    begin = 5 * HOP - HOP // 2
    theirs = theirs[:, begin : begin + 30 * HOP]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_tokenizer_speaks_with_it(spoken, vocoder):
    tokens, lengths = torch.randint(32, (3, 10)), torch.tensor([1, 0.5, 0.0])
    features = []
    spoken.mods.decoder.register_forward_hook(
        lambda module, inputs, output: features.append(output)
    )
    wavs = spoken.decode_batch(tokens, lengths)
    assert wavs.shape == (3, 10 * 2 * HOP)
    assert not any(p.requires_grad for p in spoken.parameters())
    assert not spoken.train().vocoder.training
    log_mels = spoken.mods.features.denormalize(features[0])
    speak = load_vocoder(vocoder)
    torch.testing.assert_close(wavs[:1], speak(log_mels[:1]), rtol=0, atol=1e-6)
    # Padding is not heard.
    alone = speak(log_mels[1:2, :10])
    assert torch.equal(wavs[1, : 10 * HOP], alone[0]) and alone.std() > 1e-4
    assert not wavs[1, 10 * HOP :].any() and not wavs[2].any()
    log_mels[1, 10:] = math.nan
    assert torch.equal(speak(log_mels, lengths), wavs)
    spoken.use_vocoder(None)
    assert not torch.allclose(spoken.decode_batch(tokens)[0], wavs[0])


def write_safe_vocoder(folder):
    """The same vocoder with its weights as safetensors."""
    write_vocoder(folder)
    torch.manual_seed(1)
    state = load_hyperpyyaml(VOCODER)["generator"].state_dict()
    save_file(
        {f"generator.{key}": value for key, value in state.items()},
        folder / "model.safetensors",
    )
    (folder / "generator.ckpt").unlink()
    return folder


def name_vocoder(model, name):
    yaml = model / "hyperparams.yaml"
    yaml.write_text(f"vocoder: {name}\n{yaml.read_text()}")


def test_the_yaml_of_a_model_may_name_a_vocoder_beside_it(hub, matching):
    own = write_safe_vocoder(matching / "gan")
    name_vocoder(matching, "gan")
    model = VQTokenizer.from_hparams(matching)
    assert model.vocoder.source == str(own)
    model.push_to_hub("lab/mine", token="hf_alice")
    assert isinstance(VQTokenizer.from_hparams("lab/mine").vocoder, HifiGAN)


def test_the_vocoder_of_a_yaml_is_of_the_same_commit(hub, matching):
    write_safe_vocoder(matching / "gan")
    name_vocoder(matching, "gan")
    own = {f"gan/{k}": v for k, v in read_files(matching / "gan").items()}
    pinned = hub.put("lab/model", {**read_files(matching), **own})
    hub.put("lab/model", {"gan/model.safetensors": b"other"})
    hub.log.clear()
    model = VQTokenizer.from_hparams("lab/model", pinned)
    assert isinstance(model.vocoder, HifiGAN) and model.revision == pinned
    head = hub.repo("lab/model").head()
    requested = {path for _, path in hub.log}
    assert requested and all("lab/model" in path for path in requested)
    assert not any(head in path or "main" in path for path in requested)
    hub.log.clear()
    VQTokenizer.from_hparams("lab/model", pinned)
    assert not hub.log


@pytest.mark.parametrize(
    "name", ["{outside}", "../outside", "~/outside", "a/b", "lab/gan", ".", "5"]
)
def test_vocoders_elsewhere_are_a_choice(hub, matching, tmp_path, name, caplog):
    outside = write_vocoder(tmp_path / "outside")
    hub.put("lab/gan", read_files(outside))
    name_vocoder(matching, name.format(outside=outside))
    hub.log.clear()
    assert VQTokenizer.from_hparams(matching).vocoder is None and not hub.log
    assert "give it as vocoder=" in caplog.text
    chosen = VQTokenizer.from_hparams(matching, vocoder="lab/gan")
    assert chosen.vocoder.source == "lab/gan"


def test_a_vocoder_of_a_yaml_is_no_link_and_no_pickle(matching, tmp_path):
    outside = write_safe_vocoder(tmp_path / "outside")
    name_vocoder(matching, "gan")
    (matching / "gan").symlink_to(outside)
    with pytest.raises(ValueError, match="is a link to"):
        VQTokenizer.from_hparams(matching)
    (matching / "gan").unlink()
    write_vocoder(matching / "gan")
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        VQTokenizer.from_hparams(matching)


def test_the_commands_take_one(matching, vocoder, tmp_path):
    wav = pathlib.Path(MINI, "example.wav").resolve()
    manifest, wavs, errors = tmp_path / "test.json", [], []
    manifest.write_text(json.dumps({"u": {"wav": str(wav), "spk_id": "x"}}))
    for choice in ("griffin-lim", vocoder):
        out = tmp_path / str(len(wavs))
        for arguments in (
            ["reconstruct", wav, "--model", matching],
            ["evaluate", matching, "--manifest", manifest, "--replicates=0"],
        ):
            options = ["--vocoder", choice, "--device=cpu", "--out", out]
            cli(*arguments, *options)
        wavs.append(read_audio(out / "example.wav", RATE))
        results = read_json(out / "results.json")
        errors.append(results["figures"]["reconstruction"])
        name = "Griffin-Lim" if choice == "griffin-lim" else str(vocoder)
        assert results["settings"]["vocoder"] == name
    assert wavs[0].shape == wavs[1].shape and not torch.equal(*wavs)
    one, other = (x["mel_cepstral_distortion"]["value"] for x in errors)
    assert one != pytest.approx(other, rel=0.01)


def test_a_published_name_says_what_its_yaml_does_not(hub, tmp_path, matching):
    """Those of 22 050 Hz have the same hop and mel bands as the other."""
    vocoder = write_vocoder(tmp_path / "silent", VOCODER)
    name = "speechbrain/tts-hifigan-"
    names = f"{name}libritts-16kHz", f"{name}ljspeech"
    for name in names:
        hub.put(name, read_files(vocoder))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        VQTokenizer.from_hparams(matching, vocoder=names[0])
    message = "sample_rate=22050.*sample_rate=16000"
    with pytest.raises(ValueError, match=message):
        VQTokenizer.from_hparams(matching, vocoder=names[1])
    with pytest.warns(UserWarning, match="does not state.*sample_rate=16000"):
        VQTokenizer.from_hparams(matching, vocoder=vocoder)


# ---- what is refused


@pytest.mark.parametrize(
    "old, new, wrong",
    [
        ("sample_rate: 16000", "sample_rate: 22050", "sample_rate=22050"),
        ("win_length: 1024", "win_length: 800", "win_length=800"),
        ("mel_fmax: 8000", "mel_fmax: 7600", "mel_fmax=7600"),
    ],
)
def test_other_log_mels_are_refused(tmp_path, matching, old, new, wrong):
    text = (SAYS + VOCODER).replace(old, new)
    vocoder = write_vocoder(tmp_path / "other", text)
    with pytest.raises(ValueError, match=wrong) as caught:
        VQTokenizer.from_hparams(matching, vocoder=vocoder)
    message = str(caught.value)
    assert str(vocoder) in message and str(matching) in message
    assert old.replace(": ", "=") in message and "Griffin-Lim" in message


def test_another_hop_is_refused(model, vocoder):
    with pytest.raises(ValueError, match="hop_length=256.*hop_length=160"):
        VQTokenizer.from_hparams(model, vocoder=vocoder)


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "was not loaded"),
        ({"x": 1}, "does not fit the model"),
        (
            {"x": Touch(pathlib.Path("touched"))},
            "was not loaded: .* cannot be read as a file of",
        ),
        *(
            (data, "was not loaded: .* cannot be read as a file of tensors")
            for data in (b"\x80\x02.", b"\x80\x02h\x05.", b"PK\x03\x04", b"")
            + (b"\x80\x02X\1\0\0\0\xe9.", b"version https://git-l")
        ),
    ],
)
@pytest.mark.parametrize("load", [load_vocoder, load_speaker])
def test_what_is_no_file_of_tensors_is_reported_and_not_run(
    load, content, message, tmp_path, monkeypatch
):
    """Of all that reads files of ``torch.save``, which others made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder = write_vocoder(tmp_path / "bad")
    path = folder / "generator.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as told:
        load(folder)
    assert not (tmp_path / "touched").exists()
    # The error does not suggest how to run it.
    assert "weights_only" not in str(told.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: dict(list(state.items())[1:]), "does not fit"),
        (lambda state: {1: torch.ones(1)}, "does not fit"),
        (lambda state: {k: v * math.nan for k, v in state.items()}, "NaN"),
    ],
)
def test_weights_of_no_use_are_reported(tmp_path, change, message):
    folder = write_vocoder(tmp_path / "bad", change=change)
    with pytest.raises(ValueError, match=message):
        load_vocoder(folder)


@pytest.mark.parametrize(
    "old, new, wrong",
    [
        ("sample_rate: 16000", "sample_rate: '16000'", "sample_rate='16000'"),
        ("win_length: 1024", "win_length: [1024]", "win_length=.1024."),
        ("_padding: 5", "_padding: five", "inference_padding='five'"),
        ("_padding: 5", "_padding: 1000000000", "out of bounds"),
        ("_padding: 5", "_padding: 101", "frames from 0 to 100"),
        ("_padding: 5", "_padding: -1", "frames from 0 to 100"),
    ],
)
def test_settings_that_are_no_numbers_are_reported(tmp_path, old, new, wrong):
    text = (SAYS + VOCODER).replace(old, new)
    with pytest.raises(ValueError, match=wrong):
        load_vocoder(write_vocoder(tmp_path / "bad", text))


def test_what_is_no_vocoder_is_reported(model, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="grifin.*mean 'griffin-lim'"):
        tokenizer.use_vocoder("grifin-lim")
    text = VOCODER + f"x: !apply:pathlib.Path.touch [{tmp_path / 'touched'}]\n"
    with pytest.raises(UnsafeHparamsError, match="pathlib.Path.touch"):
        load_vocoder(write_vocoder(tmp_path / "evil", text))
    assert not (tmp_path / "touched").exists()
    with pytest.raises(ValueError, match="is neither a SpeechBrain HiFi-GAN"):
        load_vocoder(model)
    with pytest.raises(FileNotFoundError, match="no folder './none'"):
        load_vocoder("./none")
    (tmp_path / "vocoder").mkdir()
    (tmp_path / "vocoder" / "hyperparams.yaml").write_text(VOCODER)
    with pytest.raises(FileNotFoundError, match="there is no"):
        load_vocoder(tmp_path / "vocoder")


# ---- units


def test_units_are_said_without_the_decoder(tokenizer, model, tmp_path):
    folder = write_units(tmp_path / "units", tokenizer)
    spoken = VQTokenizer.from_hparams(model, vocoder=folder, run_opts=CPU)
    assert isinstance(spoken.vocoder, UnitVocoder)
    tokens, speaker = torch.randint(32, (2, 20)), torch.randn(2, 4)
    wavs = spoken.decode_batch(tokens, torch.tensor([1.0, 0.6]), speaker)
    assert wavs.shape == (2, 20 * 320) and not wavs[1, 12 * 320 :].any()
    stock = UnitHIFIGAN.from_hparams(folder, savedir=tmp_path / "stock")
    for row, number in enumerate((20, 12)):
        # It adds one to what it is given, in place.
        units = tokens[row, :number, None].clone()
        theirs = stock.decode_unit(units, speaker[row])[0]
        ours = wavs[row, : number * 320]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    # By the name that DASB has for it, too.
    average = spoken.decode_batch(tokens)
    assert torch.equal(spoken.tokens_to_sig(tokens.unsqueeze(-1)), average)
    zeros = spoken.decode_batch(tokens, speaker=torch.zeros(1, 4))
    assert torch.equal(zeros, average)
    with pytest.raises(ValueError, match="tokens, not vectors"):
        spoken.decode_vectors(torch.randn(1, 20, 8))


def test_each_codebook_has_its_own_units():
    vocoder = UnitVocoder(
        load_hyperpyyaml(UNITS.replace(": 17", ": 33"))["generator"].eval(),
        {"codebook_size": 16, "num_codebooks": 2, "speaker_dim": 4},
    )
    tokens = torch.tensor([[[1, 2]] * 10])
    assert vocoder(tokens).shape == (1, 10 * 320)
    assert not torch.equal(vocoder(tokens), vocoder(tokens.flip(-1)))
    # The embedding has a row for each of these.
    for wrong in (tokens[..., :1], tokens[..., 0], tokens + 15, tokens - 2):
        with pytest.raises(ValueError, match="tokens 0..15 of 2 codebooks"):
            vocoder(wrong)


@pytest.mark.parametrize("fingerprint", ["0123456789abcdef", "null"])
def test_another_tokenizers_units_are_refused(tokenizer, tmp_path, fingerprint):
    folder = write_units(tmp_path / "units", tokenizer)
    yaml, own = folder / "hyperparams.yaml", tokenizer.fingerprint
    yaml.write_text(yaml.read_text().replace(own, f"'{fingerprint}'"))
    with pytest.raises(ValueError, match="trained on units with") as caught:
        tokenizer.use_vocoder(folder)
    assert own in str(caught.value) and fingerprint in str(caught.value)
    assert tokenizer.vocoder is None


@pytest.mark.parametrize("factors", [[2, 2], [40, 8]])
@pytest.mark.parametrize("kernel", [3, 11])
def test_the_shortest_that_a_generator_takes(factors, kernel):
    sizes = {
        "out_channels": 1,
        "resblock_type": "1",
        "resblock_dilation_sizes": [[1, 3, 5]],
        "resblock_kernel_sizes": [kernel],
        "upsample_kernel_sizes": [2 * f + f % 2 for f in factors],
        "upsample_initial_channel": 8,
        "upsample_factors": factors,
    }
    more = {"embedding_dim": 8, "multi_speaker": True}
    units = UnitHifiganGenerator(12, **sizes, **more).eval()
    number = vocoders.shortest(units)
    ids = torch.ones(1, 40, 1, dtype=torch.long)
    units.inference(ids[:, :number], spk=torch.zeros(1, 4))
    with pytest.raises(RuntimeError, match="[Pp]adding size"):
        units.inference(ids[:, : number - 1], spk=torch.zeros(1, 4))
    hop = math.prod(factors)
    settings = {"codebook_size": 50, "num_codebooks": 1, "speaker_dim": 4}
    assert UnitVocoder(units, settings)(ids[:, :1]).shape == (1, hop)
    mels = HifiGAN(HifiganGenerator(MELS, **sizes, inference_padding=0).eval())
    assert mels(torch.randn(1, 1, MELS)).shape == (1, hop)


def test_no_tokens_are_no_speech(tokenizer, tmp_path):
    none = torch.zeros(2, 0, dtype=torch.long)
    assert tokenizer.decode_batch(none).shape == (2, 0)
    decoder = tokenizer.mods.decoder
    tokenizer.mods["decoder"] = WaveNetDecoder(8, 4, 320)
    assert tokenizer.decode_batch(none).shape == (2, 0)
    tokenizer.mods["decoder"] = decoder
    tokenizer.use_vocoder(write_units(tmp_path / "units", tokenizer))
    assert tokenizer.decode_batch(none).shape == (2, 0)


def test_the_default_is_the_bundled_one_where_it_takes_the_log_mels(matching):
    """Others have Griffin-Lim, which is also to be had by its name."""
    spoken = VQTokenizer.from_hparams(MINI, run_opts=CPU)
    assert isinstance(spoken.vocoder.generator, SourceFilterVocoder)
    assert "the bundled vocoder" in spoken.made_by()
    plain = VQTokenizer.from_hparams(MINI, vocoder="griffin-lim", **CPU)
    assert plain.vocoder is None
    assert VQTokenizer.from_hparams(matching, run_opts=CPU).vocoder is None
    tokens = torch.randint(512, (2, 30), generator=torch.Generator())
    lengths = torch.tensor([1.0, 0.5])
    wavs = spoken.decode_batch(tokens, lengths)
    assert wavs.shape == (2, 30 * 320) and not wavs[1, 15 * 320 :].any()
    # Alone and in a batch, at any time.
    alone = spoken.decode_batch(tokens[1:, :15])
    torch.testing.assert_close(alone, wavs[1:, : 15 * 320], rtol=0, atol=1e-4)
    assert not torch.allclose(plain.decode_batch(tokens, lengths), wavs)
