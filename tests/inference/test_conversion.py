"""Speech is said again in the voice that is asked for, or it is told why not."""

import ast
import json
from functools import partial

import pytest
import soundfile
import torch

from speechbrain_vq import VoiceConverter, VQTokenizer, export_pretrained
from speechbrain_vq.dataio.audio import AudioError, read_audio
from speechbrain_vq.inference import convert_files
from tests.commands import cli
from tests.lobes.encoders import ECAPA
from tests.publish.runs import USED, YAML, write_run

HEARING = """    speaker: !new:speechbrain_vq.lobes.autoencoder.SpeakerEncoder
        input_dim: 20
        output_dim: 4
"""
TABLE = """    speaker: !new:speechbrain_vq.lobes.speakers.SpeakerTable
        num_speakers: 5
        output_dim: 4
"""
PRETRAINED = ECAPA.partition("speaker: ")[2].replace(
    "output_dim: 8", "output_dim: 4"
)
PRETRAINED = "    speaker: " + PRETRAINED.replace("\n    ", "\n        ")
SECTION = "inference:\n    interface: VoiceConverter\n"
NAMES = ["p225", "p226", "s5"]


def yaml_of(speaker):
    assert YAML.count(HEARING) == 1
    parts = ECAPA.partition("speaker: ")[0] if speaker == PRETRAINED else ""
    return parts + YAML.replace(HEARING, speaker) + SECTION


def prepare(modules):
    torch.manual_seed(1)
    speaker = modules["speaker"]
    if hasattr(speaker, "fill"):
        speaker.fill(NAMES)
    # Untrained, the average voice and the others differ too little.
    modules["decoder"].speaker.weight.data.mul_(20)


def make(folder, speaker):
    run, modules = write_run(folder / "run", prepare, yaml_of(speaker), **USED)
    return export_pretrained(run, folder / "model"), modules


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders of the three kinds."""
    kinds = {"hearing": HEARING, "table": TABLE, "pretrained": PRETRAINED}
    return {
        name: make(tmp_path_factory.mktemp(name), speaker)
        for name, speaker in kinds.items()
    }


@pytest.fixture
def load(models):
    def load(name):
        return VoiceConverter.from_hparams(models[name][0], device="cpu")

    return load


@pytest.fixture
def folder(tmp_path):
    """Recordings, one of which is none."""
    where = tmp_path / "speech"
    where.mkdir()
    for index, name in enumerate("abc"):
        torch.manual_seed(index)
        sound = torch.randn(9000) * torch.linspace(0.01, 0.3, 9000) ** index
        soundfile.write(where / f"{name}.wav", sound.numpy() / 4, 16000)
    (where / "text.wav").write_text("no sound")
    return where


@pytest.mark.parametrize("kind", ["hearing", "table", "pretrained"])
def test_voice_of_target_tokens_of_source(kind, models, load, folder, tmp_path):
    converter, modules = load(kind), models[kind][1]
    pair = folder / "b.wav", folder / "c.wav"
    one, two = NAMES[:2] if kind == "table" else pair
    source = folder / "a.wav"
    wavs = read_audio(source, 16000).unsqueeze(0)
    tokens = converter.encode_file(source)
    converted = converter.convert_file(source, one, tmp_path / "one.wav")
    assert torch.equal(converter.convert_file(source, one), converted)
    converter.convert_file(source, two, tmp_path / "two.wav")
    outputs = [read_audio(tmp_path / f"{n}.wav", 16000) for n in ("one", "two")]
    assert not torch.allclose(*outputs, atol=1e-3)
    assert torch.allclose(outputs[0], converted, atol=1e-3)
    # By hand, with the modules that were exported.
    for module in modules.values():
        module.eval()
    with torch.no_grad():
        if kind == "table":
            voice = modules["speaker"]([one])
        else:
            inputs = read_audio(one, 16000).unsqueeze(0), torch.ones(1)
            if kind == "hearing":
                inputs = modules["features"](*inputs)
            voice = modules["speaker"](*inputs)
    assert torch.allclose(converter.voice(one), voice, atol=1e-6)
    expected = converter.decode_batch(tokens.unsqueeze(0), None, voice)[0]
    # As long as the source, of which the last part of a token is not coded.
    assert len(outputs[0]) == 9000 and not outputs[0][len(expected) :].any()
    output = outputs[0][: len(expected)]
    # A file holds no more than full scale.
    quieter = expected / expected.abs().max().clamp(min=1)
    assert torch.allclose(output, quieter, atol=1e-3)
    # Any tokenizer may load it.
    tokenizer = VQTokenizer.from_hparams(models[kind][0])
    assert torch.equal(tokenizer.encode_file(source), tokens)
    batch = converter.convert_batch(wavs, None, one)
    assert torch.allclose(batch[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["hearing", "table"])
def test_several_targets_are_their_mean(kind, load, folder):
    converter = load(kind)
    two = NAMES[:2] if kind == "table" else [folder / "b.wav", folder / "c.wav"]
    apart = torch.cat([converter.voice(one) for one in two])
    assert apart.shape == (2, 4) and not torch.equal(apart[0], apart[1])
    assert torch.allclose(converter.voice(two)[0], apart.mean(0))
    assert torch.equal(converter.voice(two[:1]), converter.voice(two[0]))
    with pytest.raises(ValueError, match="There is no target"):
        converter.voice([])


def test_each_of_a_batch_has_its_voice(load, folder):
    converter = load("hearing")
    wavs = [read_audio(folder / f"{n}.wav", 16000) for n in "ab"]
    wavs = torch.stack(wavs)
    lengths = torch.tensor([1.0, 0.64])
    voices = torch.cat([converter.voice(folder / f"{n}.wav") for n in "bc"])
    tokens, token_lengths = converter.encode_batch(wavs, lengths)
    expected = converter.decode_batch(tokens, token_lengths, voices)
    both = converter.convert_batch(wavs, lengths, voices)
    assert torch.equal(both, expected)
    assert not both[1, 5760:].any() and both[1, :5760].any()
    for row, name in enumerate("bc"):
        # One voice for all.
        one = converter.convert_batch(wavs, lengths, folder / f"{name}.wav")
        assert torch.allclose(one[row], both[row], atol=1e-3)
        assert not torch.allclose(one[1 - row], both[1 - row], atol=1e-3)


def test_a_table_knows_names_and_hears_nothing(load, folder, tmp_path):
    converter = load("table")
    assert converter.speakers == NAMES
    with pytest.raises(ValueError, match="'p22'. .*Known: p225, p226, s5"):
        converter.voice("p22")
    paths = folder / "a.wav", folder / "b.wav", tmp_path / "o.wav"
    with pytest.raises(ValueError, match="b.wav.*Known: p225"):
        converter.convert_file(*paths)
    # In the average voice.
    wavs = read_audio(folder / "a.wav", 16000).unsqueeze(0)
    assert not converter.speaker_batch(wavs).any()
    converter.reconstruct_file(folder / "a.wav", tmp_path / "average.wav")
    assert not (tmp_path / "o.wav").exists()


@pytest.mark.parametrize("kind", ["hearing", "pretrained"])
def test_who_hears_knows_no_names(kind, load, folder):
    converter = load(kind)
    assert converter.speakers == []
    with pytest.raises(ValueError, match="no recording p225.*named speakers"):
        converter.voice("p225")
    with pytest.raises(AudioError, match="text.wav: cannot be read"):
        converter.voice(folder / "text.wav")


def test_nothing_is_written_over_what_is_read(load, folder):
    converter = load("hearing")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    one, two = folder / "a.wav", folder / "b.wav"
    for output in (one, two):
        with pytest.raises(ValueError, match="would be overwritten"):
            converter.convert_file(one, two, output)
    with pytest.raises(ValueError, match="would be overwritten"):
        converter.convert_file(one, converter.voice(two), one)
    with pytest.raises(ValueError, match="would overwrite"):
        convert_files([one], converter, two, folder)
    with pytest.raises(ValueError, match="would overwrite"):
        convert_files([one], converter, two, one)
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("kind", ["hearing", "pretrained"])
def test_targets_of_any_rate_and_channels(kind, load, tmp_path):
    converter = load(kind)
    time = torch.arange(48000) / 48000
    phase = 2 * torch.pi * 180 * time
    tone = sum(torch.sin(n * phase) / n for n in range(1, 20))
    stereo = torch.stack((tone, tone * 0.5), 1) / 4
    soundfile.write(tmp_path / "stereo.wav", stereo.numpy(), 48000)
    mono = stereo.mean(1)[::3]
    soundfile.write(tmp_path / "mono.wav", mono.numpy(), 16000)
    one = converter.voice(tmp_path / "stereo.wav")
    two = converter.voice(tmp_path / "mono.wav")
    assert torch.nn.functional.cosine_similarity(one, two) > 0.95
    # Shorter than a frame: it is named.
    soundfile.write(tmp_path / "short.wav", mono[:100].numpy(), 16000)
    # As a target or a source.
    for use in converter.voice, partial(converter.convert_file, target=one):
        with pytest.raises(ValueError, match="short.wav: shorter than one fra"):
            use(tmp_path / "short.wav")


def test_voices_for_as_many_recordings(load, folder, tmp_path):
    converter = load("hearing")
    wavs = read_audio(folder / "a.wav", 16000).unsqueeze(0)
    two = torch.cat([converter.voice(folder / f"{n}.wav") for n in "bc"])
    with pytest.raises(ValueError, match="2 voices for 1 recordings"):
        converter.convert_file(folder / "a.wav", two, tmp_path / "o.wav")
    with pytest.raises(ValueError, match="2 voices for 3 recordings"):
        converter.convert_batch(wavs.expand(3, -1), None, two)
    flat = converter.convert_batch(wavs, None, two[0])
    assert torch.equal(flat, converter.convert_batch(wavs, None, two[:1]))


@pytest.mark.parametrize("name", ["o.raw", "o.mp4"])
def test_what_is_no_format_to_write(name, load, folder, tmp_path):
    with pytest.raises(OSError, match=f"{name} cannot be written.* .wav"):
        load("table").convert_file(folder / "a.wav", "s5", tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"speech"}


def test_what_was_converted_is_not_converted_again(load, folder):
    converter, output = load("table"), folder / "converted"
    for again in (False, True):
        done = convert_files([folder], converter, "s5", output)
        assert done.done == 3 and len(done.bad) == 1
        assert done.existing == (3 if again else 0)
        paths = [p for p in output.rglob("*") if p.is_file()]
        names = {p.relative_to(output).as_posix() for p in paths}
        assert names == {"a.wav", "b.wav", "c.wav"}
    # Another recording of the same name is not taken for it.
    other = folder / "other" / "a.wav"
    other.parent.mkdir()
    content = (folder / "a.wav").read_bytes()
    other.write_bytes(content[:-2] + b"ab")
    with pytest.raises(ValueError, match=r"from a.wav \(\w{16}\), not by"):
        convert_files([other.parent], converter, "s5", output)
    # Who names it means it.
    again = folder / "again.wav"
    assert convert_files([output / "a.wav"], converter, "p225", again).done == 1


def test_the_card_and_the_request_to_the_hub(models):
    config = json.loads((models["table"][0] / "config.json").read_text())
    assert config["speechbrain_interface"] == "VoiceConverter"
    assert config["speakers"] == NAMES
    card = (models["table"][0] / "README.md").read_text()
    assert 'convert_file("speech.wav", "p225", "converted.wav")' in card
    for text in ("in the voice of one of 3", "no others", "consent"):
        assert text in card
    config = json.loads((models["hearing"][0] / "config.json").read_text())
    assert "speakers" not in config
    card = (models["hearing"][0] / "README.md").read_text()
    assert 'convert_file("speech.wav", "target.wav", "converted.wav")' in card


def test_the_command(models, load, folder, tmp_path):
    output = tmp_path / "out"
    model = f"--model={models['table'][0]}"
    command = partial(cli, "convert", model, "--device=cpu")
    done = command(folder, "--target", "p226", "--out", output)
    assert "3 files done, 1 left out: 1 " in done.stdout
    assert "text.wav: cannot be read" in done.stderr
    names = {path.name for path in output.iterdir()}
    assert names == {"a.wav", "b.wav", "c.wav"}
    load("table").convert_file(folder / "b.wav", "p226", tmp_path / "b.wav")
    assert (output / "b.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    # What is there stays; what was made in another way is not taken for it.
    source, out = folder / "a.wav", ("--out", output / "a.wav")
    before = (output / "a.wav").read_bytes()
    for targets in ("--target=s5", "--target=p226"), ("--target=s5",):
        refused = command(source, *out, *targets, code=1)
        assert "a.wav was made by" in refused.stderr
    second = command(source, *out, "--target=p226")
    assert "--overwrite" in second.stdout
    assert "0 files done, 1 there already, 0 left out." in second.stdout
    assert (output / "a.wav").read_bytes() == before
    anew = command(source, *out, "--target=s5", "--overwrite")
    assert "1 file done, 0 left out." in anew.stdout
    assert (output / "a.wav").read_bytes() != before
    for target, name, message in (
        ("s5", "o.wav", "the name of one file"),
        ("s5", "o.FLAC", "the name of one file"),
        ("nobody", "no", "Known: p225, p226, s5"),
    ):
        options = f"--target={target}", "--out", tmp_path / name
        assert message in command(folder, *options, code=1).output
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("anew", [False, True])
def test_what_is_said_of_an_interruption(models, folder, monkeypatch, anew):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(VoiceConverter, "convert_file", interrupt)
    options = ["--model", models["table"][0], "--device=cpu", "--target=s5"]
    options += ["--out", folder / "out", *["--overwrite"] * anew]
    done = cli("convert", folder, *options, code=130)
    assert "Interrupted" in done.output
    assert ("again to resume" in done.output) != anew
    assert ("starts over" in done.output) == anew


def test_any_name_fits_into_the_code_of_the_card(tmp_path):
    names = ['Anna "Ann" O\'Hara\\', "z"]

    def name(modules):
        modules["speaker"].fill(names)

    run, _ = write_run(tmp_path / "run", name, yaml_of(TABLE), **USED)
    card = (export_pretrained(run, tmp_path / "m") / "README.md").read_text()
    (line,) = [x for x in card.splitlines() if x.startswith("converter.conv")]
    call = ast.parse(line).body[0].value
    assert ast.literal_eval(call.args[1]) == names[0]
