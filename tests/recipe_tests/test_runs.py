"""What all recipes share: their epochs, progress, logs and device."""

import copy
import io
import logging
import sys
from importlib import import_module

import pytest
import soundfile
import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_vq import VectorQuantizer
from speechbrain_vq.lobes.features import LogMel
from speechbrain_vq.recipe_files import recipe_path, recipe_yaml
from speechbrain_vq.recipes.common import folder, progress
from speechbrain_vq.recipes.common.folder import choose
from speechbrain_vq.recipes.common.loggers import Sample, add_logger, picture
from speechbrain_vq.recipes.common.runs import fill_epoch
from speechbrain_vq.training import VQBrain


@pytest.mark.parametrize("number", [1, 3, 50, 101])
def test_an_epoch_has_some_steps(number):
    items = {f"utt {i}": {"wav": f"{i}.wav"} for i in range(number)}
    dataset = DynamicItemDataset(dict(items))
    dataset.set_output_keys(["id", "wav"])
    fill_epoch(dataset, batch_size=4, steps=25)
    assert len(dataset) >= 100 and len(dataset) % number == 0
    if number > 100:
        assert dataset.data == items
    # Each as often as the others, each time by another name, by which pieces
    # of it are drawn.
    wavs = [dataset[i]["wav"] for i in range(len(dataset))]
    assert len({wavs.count(wav) for wav in wavs}) == 1
    names = [dataset[i]["id"] for i in range(len(dataset))]
    assert len(set(names)) == len(names)


def test_a_batch_beyond_any_sense_is_refused():
    dataset = DynamicItemDataset({"x": {"wav": "x"}})
    with pytest.raises(ValueError, match="--batch_size=100000000: .* repeated"):
        fill_epoch(dataset, batch_size=100_000_000, steps=25)
    assert len(dataset.data) == 1


def test_the_time_of_a_step_is_measured_without_a_trace():
    class Brain(VQBrain):
        def compute_forward(self, batch, stage):
            x = self.modules.encoder(batch.x.data + 0 * torch.rand(1))
            return self.modules.vq(x)

        def compute_objectives(self, output, batch, stage):
            return output.quantized.square().mean() + output.loss

    items = {str(i): {"x": torch.randn(5, 8)} for i in range(6)}
    dataset = DynamicItemDataset(items)
    dataset.set_output_keys(["id", "x"])
    vq, encoder = VectorQuantizer(8, 16), torch.nn.Linear(8, 8)
    modules = {"vq": vq, "encoder": encoder}
    brain = Brain(modules, hparams={"batch_size": 4})
    before = copy.deepcopy(vq.state_dict())
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert progress.seconds_per_step(brain, dataset) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in vq.state_dict().items())
    assert all(p.grad is None for p in brain.modules.parameters())


def test_more_speech_gets_more_codes_and_steps():
    amounts = [5, 60, 600, 3600, 360_000]
    choices = [choose(seconds, "unit-discovery") for seconds in amounts]
    for key in ("codebook_size", "number_of_steps"):
        values = [choice[key] for choice in choices]
        assert values == sorted(values) and values[0] < values[-1]
    for seconds, choice in zip(amounts[1:], choices[1:], strict=True):
        # Fifty tokens a second.
        assert 50 * seconds / choice["codebook_size"] >= 50
    chosen = {"codebook_size": 512, "number_of_steps": 800}
    assert choose(870, "unit-discovery") == chosen
    assert choose(870, "speech-codec")["number_of_steps"] == 1600


def test_a_refused_command_leaves_that_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        path = tmp_path / "in" / f"{number // 4}_{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, torch.randn(16000).numpy() / 9, 16000)
    recipe = "MiniSpeech/unit-discovery"
    arguments = [
        *(str(recipe_path(f"{recipe}/train.py")), "in"),
        *(str(recipe_yaml(recipe, "train.yaml")), "--output_folder=out"),
    ]
    (tmp_path / "out/save/CKPT+1").mkdir(parents=True)
    (tmp_path / "out/hyperparams.yaml").write_text("latent_dim: 8\n")
    (tmp_path / "out/command.txt").write_text("speechbrain-vq train in\n")
    with pytest.raises(ValueError, match="latent_dim was 8, now it is 64"):
        folder.main(arguments)
    command = tmp_path / "out/command.txt"
    assert command.read_text() == "speechbrain-vq train in\n"


def test_a_validation_is_one_line():
    stats = {"loss": 0.5, "reconstruction_error": 0.25}
    usage = {"used_codes_percent": 94.2, "perplexity": 391.4}
    line = progress.validation_line(50, 800, stats, usage)
    assert "error 0.25, 94 % of codes used, perplexity 391" in line
    assert "warm-up" in progress.validation_line(50, None, stats, {})


class Kept:
    """A logger that keeps what it gets."""

    def __init__(self):
        self.stats = []

    def log_stats(self, *args, **kwargs):
        self.stats.append(args)


def held_out():
    """An utterance of noise, and half of it."""
    extract, wav = LogMel(16000), torch.randn(1, 16000) / 9
    extract.fit([wav])
    mels = extract(wav, torch.ones(1))[0][0]
    return Sample(
        mels,
        0.5 * mels,
        torch.tensor([3, 3, 7, 3]),
        lambda mels: extract.inverse(mels.unsqueeze(0))[0],
        16000,
    )


def log(hparams, kept, name, step, sample):
    """What a run logs at a step; the logger that was added."""
    hparams["train_logger"] = kept
    add_logger(hparams, name)
    group = hparams["train_logger"]
    group.log_stats({"epoch": 1, "step": step}, {"loss": 1 / step})
    group.log_media(step, {"utt": sample}, torch.tensor([[2.0, 6.0, 0.0, 0.0]]))
    return group.step_logger


def test_tensorboard_has_metrics_over_steps_and_what_to_see_and_hear(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator

    kept = Kept()
    hparams = {"output_folder": str(tmp_path), "lr": 0.25, "modules": {}}
    hparams["train_logger"] = kept
    add_logger(hparams, "file")
    assert hparams["train_logger"] is kept
    sample = held_out()
    # Of a run that was interrupted, and resumed.
    for step in (20, 40):
        log(hparams, kept, "tensorboard", step, sample).writer.close()
    assert [stats["step"] for stats, *_ in kept.stats] == [20, 40]
    place, sizes = str(tmp_path / "tensorboard"), {"audio": 0, "histograms": 0}
    events = event_accumulator.EventAccumulator(place, sizes).Reload()
    scalars = events.Scalars("loss/train")
    scalars = [(s.step, round(s.value, 3)) for s in scalars]
    assert scalars == [(20, 0.05), (40, 0.025)]
    for kind in ("original", "decoded"):
        decoded = events.Audio(f"utt/{kind}")
        assert [one.step for one in decoded] == [20, 40]
        read, rate = soundfile.read(io.BytesIO(decoded[0].encoded_audio_string))
        assert rate == 16000 and abs(len(read) - 16000) <= 160
    # Codes of an even share of the usage have 1.
    (usage, _) = events.Histograms("usage of a code over the mean")
    value = usage.histogram_value
    assert (value.num, value.sum, value.max) == (4, 4, 3)
    assert "| lr | 0.25 |" in str(
        events.Tensors("hyperparameters/text_summary")[0].tensor_proto
    )
    strip = picture(sample)[sample.original.shape[1] + 4]
    firsts = strip[[0, 30, 60, 90]].tolist()
    assert firsts[0] == firsts[1] == firsts[3] != firsts[2]


@pytest.mark.slow
def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    hparams = {"output_folder": str(tmp_path), "lr": 0.25, "modules": {}}
    runs = []
    for step in (20, 40):
        runs.append(log(hparams, Kept(), "wandb", step, held_out()).run)
        assert runs[-1].config["lr"] == 0.25 and runs[-1].step == step
        runs[-1].finish()
    assert runs[0].id == runs[1].id
    decoded = list(tmp_path.rglob("media/audio/utt/original_40_*.wav"))
    read, rate = soundfile.read(decoded[0])
    assert rate == 16000 and abs(len(read) - 16000) <= 160


def test_a_logger_that_is_not_there_is_named(tmp_path, monkeypatch):
    hparams = {"train_logger": None, "output_folder": str(tmp_path)}
    with pytest.raises(ValueError, match="Did you mean 'wandb'"):
        add_logger(hparams, "wandbb")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        add_logger(hparams, "wandb")


def test_too_little_speech_is_said_with_the_numbers(caplog):
    name = "speechbrain_vq.recipes.MiniSpeech.unit-discovery.train"
    units = import_module(name)
    dataset = DynamicItemDataset({"a": {"length": 4.0}, "b": {"length": 2.0}})
    hparams = {"codebook_size": 512, "token_rate": 50.0}
    with caplog.at_level(logging.WARNING):
        units.check_amount(hparams, dataset)
    for part in ("512 codes", "6.0 s", "300 tokens", "--codebook_size=16"):
        assert part in caplog.text
    caplog.clear()
    units.check_amount({**hparams, "codebook_size": 15}, dataset)
    assert not caplog.text
