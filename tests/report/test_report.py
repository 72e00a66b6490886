"""The report reads what runs leave, judges it soundly, and needs no network."""

import base64
import io
import json
import math
import pathlib
import re
import shlex
import shutil

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch

from speechbrain_vq import VQTokenizer
from speechbrain_vq.evaluation.ipa import manner, to_ipa
from speechbrain_vq.report import write_report
from speechbrain_vq.report.charts import Line, line_chart
from speechbrain_vq.report.history import read_history
from speechbrain_vq.report.images import mel_spectrogram, mel_ticks, png
from speechbrain_vq.report.recordings import measure, read_recordings
from speechbrain_vq.report.reproduce import changes, command
from speechbrain_vq.report.summary import judge, summarize
from tests.commands import MINI, cli
from tests.report.runs import make_run


def test_png_holds_the_pixels():
    pixels = torch.rand(3, 5)
    content = base64.b64decode(png(pixels).partition(",")[2])
    image = PIL.Image.open(io.BytesIO(content))
    assert (image.format, image.mode, image.size) == ("PNG", "LA", (5, 3))
    values = torch.from_numpy(np.array(image)[:, :, 1] / 255)
    assert torch.allclose(values, pixels.double(), atol=1 / 255)


def test_a_tone_lies_on_its_tick():
    rate = 16000
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(rate) / rate)
    mel = mel_spectrogram(tone, rate)
    assert mel.min() >= 0 and mel.max() == 1
    height = 1 - (float(mel[:, 20].argmax()) + 0.5) / len(mel)
    assert abs(height - dict(mel_ticks(rate))["1"]) < 0.03


def test_names_of_phones():
    arpabet = ["SIL", "S", "SH", "TH", "AA1", "HH", "NG", "JH"]
    assert list(to_ipa(arpabet).values()) == "SIL s ʃ θ ɑ h ŋ dʒ".split()
    # S is another phone in espeak: the whole inventory tells.
    espeak = "S tS u: a# I2 @L ; r- 3: dZ".split()
    assert list(to_ipa(espeak).values()) == "ʃ tʃ uː a ɪ əɫ ʲ ɹ ɜː dʒ".split()
    assert to_ipa(["ʃ", "aɪ", "r"]) == {"ʃ": "ʃ", "aɪ": "aɪ", "r": "r"}


def test_manners():
    by_manner = {
        "vowel": "a iː ɜː",
        "diphthong": "aɪ əʊ",
        "approximant": "ɹ l j w",
        "nasal": "m ŋ",
        "fricative": "s ʒ h",
        "affricate": "tʃ dʒ t͡ʃ",
        "plosive": "p ɡ ʔ",
        "silence": "SIL pau",
    }
    for name, phones in by_manner.items():
        assert {manner(phone) for phone in phones.split()} == {name}


def test_history_of_a_resumed_run(tmp_path):
    (tmp_path / "train_log.txt").write_text(
        "epoch: 1, step: 5 - train loss: 3.0e+00 - valid loss: 4.00\n"
        "epoch: 2, step: 10 - train loss: 9.00 - valid loss: 9.00\n"
        "epoch: 2, step: 10 - train loss: 2.00, train used_codes_percent: "
        "50.000 - valid loss: 2.50\n"
        "epoch: 2, step: 10 - train loss: 0.0e+00 - valid loss: 2.50\n"
        "Epoch loaded: 2 - test loss: 2.20\n"
    )
    (tmp_path / "log.txt").write_text(
        "INFO - Step 8: re-initialized quantizer from 10 vectors\n"
    )
    history = read_history(tmp_path)
    assert history.metrics["train loss"] == [(5, 3.0), (10, 2.0)]
    assert history.metrics["valid loss"] == [(5, 4.0), (10, 2.5)]
    assert (history.axis, history.reinits, history.warmup) == ("step", [8], 8)


def test_history_without_steps_or_warmup(tmp_path):
    (tmp_path / "train_log.txt").write_text(
        "Epoch: 1, lr: 1.00e-03 - train loss: 3.48 - valid PER: 3.27\n"
    )
    history = read_history(tmp_path)
    assert history.metrics["valid PER"] == [(1, 3.27)]
    assert (history.axis, history.warmup) == ("epoch", None)
    assert read_history(tmp_path / "none").metrics == {}


@pytest.mark.parametrize(
    "used, perplexity, vectors, level",
    [
        (94, 391, None, "good"),
        (26, 74, None, "fair"),
        (6, 20, None, "collapsed"),
        (60, 8, None, "collapsed"),
        # 165 frames cannot find 512 codes, but could find more than five.
        (25, 120, 165, "unknown"),
        (1, 4, 165, "collapsed"),
        (None, None, None, "unknown"),
    ],
)
def test_verdicts(used, perplexity, vectors, level):
    values = {"used_codes_percent": used, "perplexity": perplexity}
    values["vectors"] = vectors
    verdict = judge(values, 512, preset="vanilla")
    assert verdict.level == level
    assert bool(verdict.advice) == (level in ("fair", "collapsed"))
    assert not verdict.advice or "--preset=robust" in verdict.advice[0]


def test_examples_differ(tmp_path):
    """Of one speaker: whole ones, and none beside another."""
    sound, rate = soundfile.read(MINI + "/example.wav")
    sound = np.tile(sound, -(-9 * rate // len(sound)))
    for number in range(12):
        seconds = 9 if number % 4 == 3 else 3
        name = tmp_path / f"{number:02}.wav"
        soundfile.write(name, sound[: seconds * rate], rate)
    html = write_report(MINI, tmp_path / "x.html", data=tmp_path)
    html = html.read_text("utf-8")
    names = sorted(map(int, re.findall(r"<h3>(\d+)</h3>", html)))
    assert len(names) == 6 and all(name % 4 != 3 for name in names)
    assert names[0] < 3 and names[-1] > 8
    (tmp_path / "cut").mkdir()
    shutil.copy(tmp_path / "03.wav", tmp_path / "cut")
    html = write_report(MINI, tmp_path / "y.html", data=tmp_path / "cut")
    assert "first 8.0 s of 9.0 s" in html.read_text("utf-8")


def test_charts_keep_their_points_inside():
    points = [(0, 0.5), (10, 200.0), (20, 1e-3)]
    for log in (False, True):
        chart = line_chart("loss", [Line("a < b", points)], "step", log=log)
        path = re.search(r'class="line main" d="M([^"]+)"', chart)[1]
        places = [tuple(map(float, p.split())) for p in path.split("L")]
        assert all(0 <= x <= 480 and 0 <= y <= 260 for x, y in places)
        assert places[0][0] < places[1][0] < places[2][0]
        assert places[1][1] < places[0][1] < places[2][1]
        assert "a &lt; b" in chart and "a < b" not in chart
        # Both ends of the axis have their number.
        assert ">0</text>" in chart and ">20</text>" in chart


@pytest.mark.parametrize("ends", [(99, 97), (2, 0)])
def test_labels_of_near_lines_do_not_collide(ends):
    pairs = zip("ab", ends, strict=True)
    lines = [Line(name, [(0, 1.0), (160, y)]) for name, y in pairs]
    chart = line_chart("used", lines, "step", ends=(0, 160), top=100)
    # Above the numbers of the axis.
    a, b, number = (
        float(re.search(f'y="([^"]+)">{name}</text>', chart)[1])
        for name in ("a", "b", 160)
    )
    assert b - a >= 15 and a > 15 and number - b >= 15


def test_one_offline_page(tmp_path):
    run = make_run(tmp_path)
    page = tmp_path / "pages" / "report.html"
    other = make_run(tmp_path / "other", used=1.5, perplexity=3.0)
    cli("report", run, f"--out={page}", f"--compare={other}")
    html = page.read_text("utf-8")
    assert len(html) < 10e6
    # Nothing is loaded from elsewhere.
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)|https?://", html)
    assert html.count("<audio") == 4 and "data:audio/flac" in html
    assert "94 % of 512 codes used" in html and "after steps 100, 200" in html
    assert "--number_of_steps=400" in html
    for section in "listen training codebook units compare reproduce".split():
        assert f'id="{section}"' in html


def test_text_of_others_is_escaped(tmp_path):
    run = make_run(tmp_path, words="<script>alert(1)</script>")
    html = write_report(run, tmp_path / "report.html").read_text("utf-8")
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html


def test_reports_of_models_and_of_runs_without_one(tmp_path):
    model = write_report(MINI, tmp_path / "mini.html").read_text("utf-8")
    assert "PNMI</" not in model and "PNMI needs phones" in model
    assert 'id="training"' not in model
    run = make_run(tmp_path)
    shutil.rmtree(run / "model")
    html = write_report(run, tmp_path / "run.html").read_text("utf-8")
    assert "No recordings" in html and 'id="training"' in html


@pytest.mark.parametrize("option", ["--report={page}", "--out={page.parent}"])
def test_evaluate_ends_with_it(option, tmp_path):
    run = make_run(tmp_path)
    page = tmp_path / "evaluation/report.html"
    page.parent.mkdir()
    options = "--replicates=0", "--reconstruct=0", option.format(page=page)
    manifest = f"--manifest={run}/manifests/test.json"
    assert f"Wrote {page}" in cli("evaluate", MINI, manifest, *options).output
    assert "2 utterances of test.json" in page.read_text("utf-8")


def test_command_and_changes(tmp_path):
    summary = summarize(make_run(tmp_path))
    values = {change.key: change.value for change in changes(summary)}
    assert values == {"seed": 7, "number_of_steps": 400, "vq.norm": "none"}
    assert command(summary).splitlines() == [
        "speechbrain-vq train MiniSpeech/unit-discovery \\",
        "    --data_folder=data \\",
        "    --seed=7 \\",
        "    --number_of_steps=400",
    ]
    # Of a run on a folder, what was typed.
    typed = "speechbrain-vq train 'my recordings' '--out=my run'"
    (summary.run.folder / "command.txt").write_text(typed + "\n")
    written = shlex.split(command(summary).replace("\\\n", ""))
    assert written == shlex.split(typed)


def test_data(tmp_path):
    shutil.copy(MINI + "/example.wav", tmp_path / "a.wav")
    assert list(read_recordings(tmp_path)) == ["a"]
    entry = {"wav": "{data_root}/a.wav", "phones": [[0, 1, "a"]]}
    (tmp_path / "test.json").write_text(json.dumps({"utt": entry}))
    assert read_recordings(tmp_path)["utt"]["phones"] == [[0, 1, "a"]]
    (tmp_path / "test.json").unlink()
    (tmp_path / "test.csv").write_text("ID,wav,spk_id\nutt,a.wav,ann\n")
    for place in (tmp_path, tmp_path / "test.csv"):
        assert read_recordings(place)["utt"]["spk_id"] == "ann"


def test_a_run_is_not_compared_on_other_data(tmp_path):
    run, page = make_run(tmp_path), tmp_path / "report.html"
    write_report(run, page, compare=[run], data=MINI + "/example.wav")
    table = page.read_text("utf-8").split('id="compare"')[1]
    table = table.split("</table>")[0]
    first, second = re.findall(
        r"<tr[^>]*>(<th scope=\"row\".*?)</tr>", table, re.S
    )
    assert first == second


def test_phones_of_one_symbol_keep_their_names(tmp_path):
    phones = [[0, 0.3, "AH0"], [0.3, 0.6, "AH1"], [0.6, 0.9, "S"]]
    entries = {"u": {"wav": MINI + "/example.wav", "phones": phones}}
    measured = measure(VQTokenizer.from_hparams(MINI), entries)
    assert measured.phones == ["AH0", "AH1", "s"]
    (tmp_path / "caf\udce9.wav").write_bytes(
        pathlib.Path(MINI, "example.wav").read_bytes()
    )
    html = write_report(MINI, tmp_path / "page.html", data=tmp_path)
    assert "caf\\udce9" in html.read_text("utf-8")


def test_names_tell_runs_apart(tmp_path):
    run = make_run(tmp_path)
    for name in ("robust/1234", "vanilla/1234"):
        shutil.copytree(run, tmp_path / name)
        assert summarize(tmp_path / name).name == name
    assert summarize(run).name == "run"
    assert summarize(run / "model").name == "run/model"


def test_wrong_places_are_named(tmp_path):
    for arguments, hint in (
        (["sppech"], "no folder 'sppech'"),
        ([tmp_path], "not the folder"),
        ([MINI, f"--data={tmp_path}"], "no audio files"),
    ):
        assert hint in cli("report", *arguments, code=1).output
