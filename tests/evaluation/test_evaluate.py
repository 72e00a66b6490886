"""The whole evaluation, of a model and of tokens, and its report."""

import json
import math
import random
import re
import sys
import types

import pytest
import soundfile
import torch

from speechbrain_vq import VQTokenizer
from speechbrain_vq.evaluation import evaluate, write_report
from speechbrain_vq.evaluation.judges import Whisper, load_judge
from speechbrain_vq.evaluation.report import as_json, as_markdown
from speechbrain_vq.evaluation.utterances import EvaluatedModel
from speechbrain_vq.inference import tokenize_files
from tests.commands import MINI, cli
from tests.evaluation.synthetic import spans, tones

RATE = 16000
TONES = {"a": 300, "b": 600, "c": 1200, "d": 2400}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Tones for phones, of two speakers, louder and softer; ten utterances."""
    folder = tmp_path_factory.mktemp("corpus")
    draw, entries = random.Random(0), {}
    for number in range(10):
        names = ["SIL", *draw.choices(list(TONES), k=10)]
        bend = 1.1 if number % 2 else 1.0
        wav = tones([TONES.get(name, 0) * bend for name in names]) / 3
        soundfile.write(folder / f"utt-{number}.wav", wav.numpy(), RATE)
        entries[f"utt-{number}"] = {
            "wav": f"{{data_root}}/utt-{number}.wav",
            "length": 1.1,
            "spk_id": "xy"[number % 2],
            "gender": "fm"[number % 2],
            "words": "",
            "phones": spans(names),
        }
    (folder / "test.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return VQTokenizer.from_hparams(MINI, run_opts={"device": "cpu"})


def spoilt(audio, sample_rate, entry):
    """A judge."""
    assert sample_rate == RATE and entry["spk_id"] in "xy"
    return {"lost_samples": len(audio["source"]) - len(audio["output"])}


@pytest.fixture(scope="module")
def evaluation(corpus, tokenizer, tmp_path_factory):
    return evaluate(
        tokenizer,
        corpus / "test.json",
        judges=[spoilt],
        max_reconstructed=2,
        conversions=3,
        audio=tmp_path_factory.mktemp("audio"),
        replicates=20,
    )


def test_all_sections_are_there(evaluation):
    assert list(evaluation.metrics) == [
        *("phones", "abx", "segmentation", "leak", "cost"),
        *("reconstruction", "conversion"),
    ]
    assert evaluation.left_out == []
    assert evaluation.settings["vocoder"] == "the bundled vocoder"
    assert evaluation.settings["utterances"] == 10
    assert evaluation.settings["seconds"] == 11.0
    assert evaluation.settings["reconstructed"] == 2
    assert evaluation.settings["converted"] == 3
    assert evaluation.settings["judges"] == ["spoilt"]
    for estimates in evaluation.metrics.values():
        for name, (value, low, high, quantity) in estimates.items():
            assert math.isfinite(value) and quantity.label, name
            least, most = quantity.bounds
            assert low is None or least <= low <= value <= high <= most, name
            known = math.isfinite(least) or math.isfinite(most)
            assert known or name == "spoilt:lost_samples", name


def test_tones_are_told_apart(evaluation):
    """Tones are stationary: what there is must be found."""
    assert evaluation.metrics["phones"]["pnmi"].value > 0.6
    assert evaluation.metrics["phones"]["pnmi"].low is not None
    abx = evaluation.metrics["abx"]
    assert len(abx) == 12
    assert abx["abx_within_speaker_any_context_latents"].value < 0.15
    assert evaluation.metrics["leak"]["phone_from_latents"].value > 0.85
    assert evaluation.metrics["leak"]["gender_from_latents"].value > 0.6
    assert evaluation.metrics["segmentation"]["recall"].value > 0.75
    cost = evaluation.metrics["cost"]
    assert cost["tokens_per_second"].value == pytest.approx(50)
    # Of 512 codes; intervals only where utterances differ.
    assert cost["bits_per_second_log2_codes"].value == pytest.approx(450)
    for section in ("reconstruction", "conversion"):
        assert evaluation.metrics[section]["spoilt:lost_samples"].value == 0
    assert "speaker_from_codewords" in evaluation.metrics["leak"]


def test_a_token_file_evaluates_alike(corpus, tokenizer, evaluation, tmp_path):
    """In another order, and from paths that are elsewhere written."""
    output = tmp_path / "tokens.jsonl"
    tokenize_files(sorted(corpus.glob("*.wav"))[::-1], tokenizer, output)
    lines = output.read_text().splitlines()
    extra = json.loads(lines[0]) | {"path": "/elsewhere/other.wav"}
    output.write_text("\n".join([*lines, json.dumps(extra)]) + "\n")
    options = {"replicates": 20, "codebook_size": 512}
    again = evaluate(output, corpus / "test.json", **options)
    for section in ("phones", "segmentation", "cost"):
        for name, figure in evaluation.metrics[section].items():
            theirs = again.metrics[section][name]
            assert theirs[:3] == pytest.approx(figure[:3]), name
            assert theirs.quantity == figure.quantity
    for section in ("abx", "leak"):
        for name, figure in again.metrics[section].items():
            theirs = evaluation.metrics[section][name]
            assert figure.value == pytest.approx(theirs.value), name
    assert len(again.metrics["abx"]) == 4 and "conversion" not in again.metrics
    assert "reconstruction" not in again.metrics
    assert any("need the model" in note for note in again.left_out)


def test_a_long_file_is_encoded_in_pieces(corpus, tokenizer, tmp_path):
    """With the tokens and latents of the whole, and no more to say again than
    is listened to."""
    wavs = [
        torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        for path in sorted(corpus.glob("*.wav"))
    ]
    whole = torch.cat(wavs * 2)[:-77]
    soundfile.write(tmp_path / "long.wav", whole.numpy(), RATE)
    some = (corpus / "utt-0.wav").read_bytes()[:99]
    (tmp_path / "gone.wav").write_bytes(some)
    entries = {
        "one": {"wav": str(corpus / "utt-0.wav")},
        "long": {"wav": str(tmp_path / "long.wav")},
        "bad": {"wav": str(tmp_path / "gone.wav")},
        "two": {"wav": str(corpus / "utt-1.wav")},
    }
    sizes = []
    hook = tokenizer.mods.features.register_forward_pre_hook(
        lambda module, inputs: sizes.append(inputs[0].numel())
    )
    model = EvaluatedModel(tokenizer, batch_seconds=4)
    utterances = list(model.utterances(entries))
    hook.remove()
    assert max(sizes) < 5 * RATE
    assert [one.name for one in utterances] == ["one", "long", "two"]
    assert "gone.wav" in model.errors["bad"]
    long = utterances[1]
    assert long.seconds == len(whole) / RATE > 20
    expected = tokenizer.encode_batch(whole[None])[0][0]
    assert torch.equal(long.tokens[:, 0], expected)
    quantizer = tokenizer.mods.quantizer
    for one in utterances:
        tokens = one.tokens[:, 0]
        again = quantizer.encode(one.latents[None])[0]
        assert (again == tokens).float().mean() > 0.98
        assert torch.allclose(one.codewords, quantizer.decode(tokens))
    start = model.beginning(long)
    assert torch.equal(start.wav, whole[: 20 * RATE])
    assert len(start.tokens) == len(start.latents) == 20 * 50
    assert len(model.reconstruct(start)) == 20 * RATE
    assert model.beginning(utterances[0]).tokens is utterances[0].tokens


def test_what_is_missing_is_reported(corpus, tokenizer, tmp_path):
    entries = json.loads((corpus / "test.json").read_text())
    bare = {name: {"wav": one["wav"]} for name, one in entries.items()}
    bare["gone"] = {"wav": "{data_root}/gone.wav"}
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    (tmp_path / "x.item").write_text("other 0 1 a b c ann\n")
    evaluation = evaluate(
        tokenizer,
        tmp_path / "bare.json",
        item=tmp_path / "x.item",
        data_root=corpus,
        max_reconstructed=0,
        judges=[spoilt],
        replicates=0,
    )
    assert list(evaluation.metrics) == ["cost"]
    notes = "\n".join(evaluation.left_out)
    for what in (
        "gone.wav",
        "1 of 1 ABX items are in files that the manifest does not list",
        "the manifest has no phones",
        "ABX: there are no items",
        "speaker probe",
        "gender probe",
        "conversion to other voices: not requested",
        "judges: nothing is reconstructed",
    ):
        assert what in notes, what
    assert evaluation.metrics["cost"]["frames_per_second"].low is None


def test_conversion_needs_two_speakers_and_a_judge(corpus, tokenizer, tmp_path):
    entries = json.loads((corpus / "test.json").read_text())
    alone = {k: v for k, v in entries.items() if v["spk_id"] == "x"}
    (tmp_path / "alone.json").write_text(json.dumps(alone))
    options = {"max_reconstructed": 0, "replicates": 0, "data_root": corpus}
    one = evaluate(tokenizer, tmp_path / "alone.json", conversions=2, **options)
    assert "conversion" not in one.metrics
    assert any("does not name two" in note for note in one.left_out)
    two = evaluate(tokenizer, corpus / "test.json", conversions=2, **options)
    assert list(two.metrics["conversion"]) == [
        "token_agreement",
        "token_agreement_own_voice",
    ]
    assert any("no judge" in note for note in two.left_out)


def test_a_manifest_without_tokens_is_refused(tmp_path):
    (tmp_path / "bad.json").write_text('{"a": {"wav": "/nowhere.wav"}}')
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ValueError, match="None of the 1 utterances"):
        evaluate(tmp_path / "none.jsonl", tmp_path / "bad.json")


def test_the_report_says_all(evaluation, tmp_path):
    files = write_report(evaluation, tmp_path / "out")
    names = ["results.json", "results.md"]
    assert sorted(file.name for file in files) == names
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == json.loads(json.dumps(as_json(evaluation)))
    pnmi = evaluation.metrics["phones"]["pnmi"].value
    text = as_markdown(evaluation)
    for name in (
        *(f"{pnmi:.4f}", "spoilt: lost samples", "seed: 0"),
        *("utterances: 10", "mel-cepstral distortion (dB)", "PNMI"),
        *("judges: spoilt", "boundary tolerance: 20 ms"),
        *(" (same context)", "vocoder: the bundled vocoder"),
        "across speakers, any context: latents",
    ):
        assert name in text, name
    # No keys, no Python, no holes.
    text = text.replace(evaluation.settings["source"], "")
    text = text.replace(evaluation.settings["manifest"], "")
    assert not re.search(r"[a-z]_[a-z]|[{}]|\[\]|\n\n\n", text)


def test_former_names_work_for_a_release(evaluation):
    with pytest.warns(DeprecationWarning, match="metrics"):
        assert evaluation.figures is evaluation.metrics
    with pytest.warns(DeprecationWarning, match="Estimate"):
        from speechbrain_vq.evaluation import Figure
    assert isinstance(evaluation.metrics["phones"]["pnmi"], Figure)


def test_empty_settings_and_long_lists_in_words(evaluation):
    bare = evaluation._replace(settings={"judges": [], "seed": 0}, left_out=[])
    assert as_markdown(bare).endswith("\n- judges: none\n- seed: 0\n")
    many = evaluation._replace(left_out=[f"u{n}: gone" for n in range(30)])
    text = as_markdown(many)
    assert "\n\n## Left out\n\n- u0: gone\n" in text
    assert "- u19: gone\n- ... and 10 more\n\n## Settings\n\n- " in text


def test_bad_audio_is_left_out_and_counted(tmp_path):
    entries = {}
    for name, samples in (
        ("a", torch.randn(RATE) / 9),
        ("short", torch.zeros(1)),
        ("b", torch.randn(2 * RATE) / 9),
        ("nan", torch.full((RATE,), math.nan)),
        ("loud", torch.full((RATE,), 1e30)),
        ("late", torch.randn(RATE) / 9),
        ("in_ms", torch.randn(RATE) / 9),
    ):
        entries[name] = {"wav": f"{name}.wav", "length": 1.0}
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    entries["gone"] = {"wav": "gone.wav"}
    entries["late"]["phones"] = [[0.5, 1.2, "a"]]
    entries["in_ms"]["phones"] = [[0, 500, "a"], [500, 1000, "b"]]
    entries["a"]["phones"] = [[0, 1.05, "a"]]  # Rounded
    (tmp_path / "m.json").write_text(json.dumps(entries))
    command = "evaluate", MINI, f"--manifest={tmp_path}/m.json"
    options = "--device=cpu", "--replicates=0", "--reconstruct=0"
    result = cli(*command, *options)
    summary = result.stdout.splitlines()[-1]
    assert summary.startswith("2 utterances evaluated, 6 left out: 2 its phon")
    for told in (
        "in_ms.wav: its phones end after the audio, at 1000 s",
        "lengths of 1 utterances that differ",
    ):
        assert told in result.stdout
    for reason in ("shorter than one frame", "contains NaN", "no such file"):
        assert f"1 {reason}" in summary
    cli(*command, *options, "--strict", code=1)


@pytest.fixture
def tokens(corpus, tokenizer, tmp_path):
    """A file of tokens, and the arguments to evaluate it."""
    output = tmp_path / "tokens.jsonl"
    tokenize_files(sorted(corpus.glob("*.wav")), tokenizer, output)
    return "evaluate", output, "--manifest", corpus / "test.json"


def test_the_command_line(tokens, tmp_path):
    out = "--out", tmp_path / "new" / "out"
    result = cli(*tokens, *out, "--replicates", "5")
    assert "PNMI" in result.output and "ZeroSpeech" in result.output
    assert re.search(r"^Verdict: \d+ % of \d+ codes", result.output, re.M)
    assert "conversion and judges: they need the model" in result.output
    assert (tmp_path / "new" / "out" / "results.md").is_file()
    missing = cli("evaluate", tmp_path / "gone.jsonl", *tokens[2:], code=1)
    assert "gone.jsonl" in missing.output


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("tokens.jsonl", ["--targets=none.json"], "there is no 'none.json'"),
        ("none", ["--audio=wavs"], "--audio need --conversion-pairs"),
        ("none", ["--targets=x.jsonl"], "--audio need --conversion-pairs"),
        # Sources of no known kind.
        *((name, [], "token file must be .jsonl") for name in ("a.npz", "b")),
        ("none", [], "There is no folder 'none'"),
    ],
)
def test_options_and_sources_of_no_use_are_refused(
    source, options, message, corpus, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("tokens.jsonl", "x.jsonl", "a.npz", "b"):
        (tmp_path / name).touch()
    arguments = source, f"--manifest={corpus}/test.json", *options
    result = cli("evaluate", *arguments, code=2 if options else 1)
    assert message in " ".join(result.output.split())


def test_where_to_write_is_looked_at_first(tokens, tmp_path):
    (tmp_path / "file").touch()
    for option in ("--out", "--audio"):
        wrong = cli(*tokens, option, tmp_path / "file" / "a" / "b", code=2)
        assert "/file' cannot be written to" in wrong.output
        assert "PNMI" not in wrong.output


def test_a_decoder_that_writes_samples_is_heard(corpus):
    heard = []

    def hears(audio, sample_rate, entry):
        heard.append(audio["output"])
        return {}

    def generate(vectors, speaker, lengths):
        return torch.randn(1, vectors.shape[1] * 320)

    model = VQTokenizer.from_hparams(MINI, vocoder="griffin-lim")
    options = {"max_reconstructed": 1, "replicates": 0, "judges": [hears]}
    model.mods.decoder.generate = generate
    evaluation = evaluate(model, corpus / "test.json", **options)
    assert evaluation.settings["vocoder"].endswith("writes samples")
    assert len(heard[0].unique()) > 1000


def test_judges_are_found_by_name(corpus):
    assert load_judge("math.hypot") is math.hypot
    assert load_judge(spoilt) is spoilt
    wrong = "hypot no.such:judge math:nothing"
    for name in wrong.split():
        with pytest.raises(ValueError, match="judge"):
            load_judge(name)
    with pytest.raises(ValueError, match="choose resemblyzer or whisper"):
        load_judge("resemblizer")
    with pytest.raises(ValueError, match="different names"):
        evaluate("none", corpus / "test.json", judges=[spoilt, spoilt])


@pytest.mark.parametrize(
    "name, package, message",
    [
        ("resemblyzer", "resemblyzer", r"setuptools<81.*pkg_resources"),
        ("whisper", "faster_whisper", "pip install faster-whisper jiwer"),
        ("whisper", "jiwer", "pip install faster-whisper jiwer"),
    ],
)
def test_what_a_judge_lacks_is_reported_before_the_work(
    name, package, message, corpus, tokenizer, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(
        tokenizer, "encode_batch", lambda *_: pytest.fail("it has begun")
    )
    pattern = rf"The judge '{name}' cannot be used: .*{package}.*{message}"
    with pytest.raises(ImportError, match=pattern):
        evaluate(tokenizer, corpus / "test.json", judges=[name])


def test_the_weights_of_whisper_are_the_callers(monkeypatch, corpus, tokenizer):
    """The report names them, and what they hear is scored as jiwer does."""
    pytest.importorskip("jiwer")
    transcripts = iter(["The CAT, sat down.", "the cat sat up"] * 9)
    loaded = []

    class Model:
        def __init__(self, weights, **options):
            loaded.append(weights)

    package = types.ModuleType("faster_whisper")
    package.WhisperModel = Model
    monkeypatch.setitem(sys.modules, "faster_whisper", package)
    monkeypatch.setattr("speechbrain_vq.evaluation.judges._version", str)
    monkeypatch.setattr(
        Whisper, "transcribe", lambda self, wav, rate: next(transcripts)
    )
    audio = dict.fromkeys(["source", "output", "target"], torch.zeros(9))
    judge = load_judge("whisper")
    assert judge(audio, RATE, {}) == {}
    scores = judge(audio, RATE, {"words": "The cat sat down"})
    assert scores == {"wer_source": (0, 4), "wer_output": (1, 4)}
    entries = json.loads((corpus / "test.json").read_text())
    words = {
        name: {"wav": entries[name]["wav"], "words": text}
        for name, text in (("utt-0", "the cat sat down"), ("utt-1", "the cat"))
    }
    (corpus / "words.json").write_text(json.dumps(words))
    options = {"judges": ["whisper:a/folder"], "replicates": 0}
    evaluation = evaluate(tokenizer, corpus / "words.json", **options)
    assert loaded == ["tiny.en", "a/folder"]
    rate = evaluation.metrics["reconstruction"]["whisper:wer_output"]
    # The mean over utterances would be (1/4 + 2/2) / 2.
    assert rate.value == 3 / 6 and rate.quantity.bounds == (0, math.inf)
    assert str(rate.quantity) == "whisper: word error rate of the output"
    weights = {"whisper": "a/folder (faster-whisper faster-whisper)"}
    assert evaluation.settings["judge_weights"] == weights
    assert "judge weights: a/folder" in as_markdown(evaluation)


def test_the_judge_whose_weights_are_in_its_package_judges(corpus):
    pytest.importorskip("resemblyzer")
    judge = load_judge("resemblyzer")
    wav, _ = soundfile.read(corpus / "utt-0.wav", dtype="float32")
    audio = dict.fromkeys(["source", "output"], torch.from_numpy(wav))
    assert judge(audio, RATE, {"words": "one"})
