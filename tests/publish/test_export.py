"""An export is whole, is what was trained, and says what is wrong with it."""

import json
import logging
import math
import re
import shutil
import sys

import pytest
import soundfile
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_vq import VQTokenizer, export_pretrained
from speechbrain_vq.hub import load_pretrained
from speechbrain_vq.publish import ExportRefused
from speechbrain_vq.publish.validate import describe_dead_codebook
from speechbrain_vq.training import ReinitSchedule, VQBrain
from speechbrain_vq.training.resume import AtomicCheckpointer
from tests.commands import cli
from tests.publish.runs import USED, YAML, write_minispeech, write_run

ALWAYS = {"hyperparams.yaml", "config.json", "model.safetensors", "README.md"}


def tensors(modules):
    state = torch.nn.ModuleDict(modules).state_dict()
    return {k: v for k, v in state.items() if torch.is_tensor(v)}


def assert_same(modules, others):
    ours, theirs = tensors(modules), tensors(others)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value, theirs[key]), key


def fill(value, number=None):
    return lambda parts: parts["encoder"].last.bias.data[:number].fill_(value)


def bias(model):
    return float(load_file(model / "model.safetensors")["encoder.last.bias"][0])


# What is in the folder


def test_minispeech_gives_an_example(tmp_path):
    run, _ = write_run(tmp_path / "run")
    write_minispeech(run)
    (tmp_path / "model").mkdir()  # An empty place is a place.
    model = export_pretrained(run, tmp_path / "model")
    example = {"example.wav", "example.tokens.json", "spectrogram.png"}
    assert {path.name for path in model.iterdir()} == ALWAYS | example
    example = json.loads((model / "example.tokens.json").read_text())
    assert len(example["tokens"]) == 25
    tokenizer = VQTokenizer.from_hparams(model)
    tokens = tokenizer.encode_file(model / example["file"])
    assert tokens.tolist() == example["tokens"]


def test_recordings_of_people_are_not_passed_on_unasked(tmp_path):
    run, _ = write_run(tmp_path / "run")
    write_minispeech(run, corpus="audio")
    model = export_pretrained(run, tmp_path / "model")
    assert {path.name for path in model.iterdir()} == ALWAYS
    assert {p.name for p in tmp_path.iterdir()} == {"run", "model"}
    wav = tmp_path / "mine.wav"
    soundfile.write(wav, torch.randn(24000, 2) / 10, 8000)
    model = export_pretrained(run, tmp_path / "model", example=wav)
    samples, rate = soundfile.read(model / "example.wav")
    assert samples.shape == (48000,) and rate == 16000


def test_what_was_trained_is_what_is_loaded_and_nothing_else(tmp_path):
    run, modules = write_run(tmp_path / "run")
    model = export_pretrained(run, tmp_path / "model")
    assert_same(modules, load_pretrained(model)["modules"])
    assert_same(modules, VQTokenizer.from_hparams(model).mods)
    stock = Pretrained.from_hparams(model, savedir=tmp_path / "saved")
    assert_same(modules, stock.mods)
    text = (model / "hyperparams.yaml").read_text()
    for word in ("lr:", "Adam", "path", "save", str(tmp_path), "PLACEHOLDER"):
        assert word not in text
    keys = {"sample_rate", "token_rate", "modules", "pretrainer"}
    assert set(load_hyperpyyaml(text)) == keys
    weights = load_file(model / "model.safetensors")
    assert not [name for name in weights if "reservoir" in name]
    config = json.loads((model / "config.json").read_text())
    assert config["speechbrain_interface"] == "VQTokenizer"
    assert config["codebook_size"] == 32 and config["arm"] == "robust"
    assert config["format"] == 1 and config["checkpoint"]["loss"] == 1.0
    # A later format is refused by name.
    later = json.dumps({**config, "speechbrain_vq": "9", "format": 2})
    (model / "config.json").write_text(later)
    with pytest.raises(ValueError, match="speechbrain_vq 9, in format 2"):
        load_pretrained(model)


def test_what_was_one_module_stays_one(tmp_path):
    yaml = YAML.replace("optimizer:", "    again: *encoder\noptimizer:")
    # References are resolved.
    yaml = yaml.replace("n_mels: 20", "n_mels: !ref <mels>") + "mels: 20\n"
    run, written = write_run(tmp_path / "run", yaml=yaml)
    model = export_pretrained(run, tmp_path / "model")
    assert "!ref <mels>" not in (model / "hyperparams.yaml").read_text()
    modules = load_pretrained(model)["modules"]
    assert modules["again"] is modules["encoder"]
    assert_same(written, modules)


RECOGNISER = """
sample_rate: 16000
phones: [SIL, a, b]
save_folder: {folder}/save
inference:
    interface: speechbrain.inference.interfaces.Pretrained
    keys: [sample_rate, phones]
    files: [label_encoder.txt]
    summary: Phones of speech.
    card: {{pipeline_tag: automatic-speech-recognition, language: en}}
modules:
    features: !new:speechbrain_vq.lobes.features.LogMel
        n_mels: 20
    first: !new:speechbrain_vq.nnet.VectorQuantizer
        input_dim: 20
        codebook_size: 16
    second: !new:speechbrain_vq.nnet.ResidualVectorQuantizer
        input_dim: 20
        codebook_size: 8
        num_quantizers: 2
    head: !new:torch.nn.Linear
        in_features: 20
        out_features: 3
opt_class: !name:torch.optim.Adam
"""


def test_a_recipe_of_another_kind_is_exported_by_its_yaml_alone(tmp_path):
    run, modules = write_run(tmp_path / "run", yaml=RECOGNISER)
    labels = run / "save" / "label_encoder.txt"
    labels.write_text("'a' => 0\n")
    model = export_pretrained(run, tmp_path / "model")
    assert {p.name for p in model.iterdir()} == ALWAYS | {labels.name}
    loaded = load_pretrained(model)
    assert_same(modules, loaded["modules"])
    assert loaded["phones"] == ["SIL", "a", "b"]
    config = json.loads((model / "config.json").read_text())
    assert config["quantizers"]["second"]["num_codebooks"] == 2
    card = (model / "README.md").read_text()
    assert "pipeline_tag: automatic-speech-recognition" in card
    assert "Phones of speech." in card


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("sample_rate: 16000", "", "lacks sample_rate"),
        ("lr: 0.001", "inference: {{keys: [phones]}}", "lacks phones"),
        ("lr: 0.001", "inference: {{kyes: []}}", "unknown keys: kyes. Its"),
        ("lr: 0.001", "inference: {{interface: Nobody}}", "Nobody cannot be"),
        ("token_rate: 50.0", "token_rate: /home/me", "/home/me, a path"),
    ],
)
def test_a_yaml_that_cannot_be_exported_is_named(tmp_path, old, new, message):
    # The modules need none of what is changed.
    run, _ = write_run(tmp_path / "run")
    text = YAML.replace(old, new, 1).format(folder=run)
    (run / "hyperparams.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        export_pretrained(run, tmp_path / "model")
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


# Which checkpoint


def test_the_best_checkpoint_is_taken(tmp_path):
    write_run(tmp_path / "run", fill(1.0), loss=0.5, gain=1)
    write_run(tmp_path / "run", fill(2.0), loss=0.7, gain=3)
    run, _ = write_run(tmp_path / "run", fill(3.0), loss=0.9, gain=2)
    write_run(tmp_path / "run", fill(4.0), loss=0.1, gain=9, vq_warmup=True)
    write_run(tmp_path / "run", fill(5.0), loss=math.nan, gain=math.nan)
    place = tmp_path / "model"
    assert bias(export_pretrained(run, place)) == 5.0
    assert bias(export_pretrained(run, place, min_key="loss")) == 1.0
    assert bias(export_pretrained(run, place, max_key="gain")) == 2.0
    name = sorted((run / "save").iterdir())[0]
    assert bias(export_pretrained(run, place, checkpoint=name)) == 1.0
    # A run that moved takes its own checkpoints.
    moved, name = run.rename(tmp_path / "moved"), name.name
    write_run(tmp_path / "run", fill(2.0))
    assert bias(export_pretrained(moved, place, checkpoint=name)) == 1.0


def test_a_choice_that_is_none_is_reported(tmp_path):
    run, _ = write_run(tmp_path / "run")
    place = tmp_path / "model"
    write_run(tmp_path / "run", fill(2.0), loss=0.9, dead=3, flag=True)
    missing = FileNotFoundError
    los = "No metric 'los'. Did you mean 'loss'.*dead, .*loss"
    for source, options, error, message in (
        (run, {"min_key": "los"}, ValueError, los),
        (
            run,
            {"checkpoint": "CKPT"},
            missing,
            "no checkpoint CKPT. There are CKP",
        ),
        (run, {"min_key": "loss", "max_key": "loss"}, ValueError, "one of"),
        (tmp_path, {}, missing, "not the folder of a run"),
    ):
        with pytest.raises(error, match=message):
            export_pretrained(source, place, **options)


# What is refused


DEAD = {**USED, "valid_used_codes_percent": 3.125, "valid_perplexity": 1.0}


@pytest.mark.parametrize(
    "about, message",
    [
        ({"vq_warmup": True}, "still in its warm-up"),
        (DEAD, "'quantizer' is dead: 1 of its 32 codes.*of 1.0"),
    ],
)
def test_what_is_of_no_use_needs_force(tmp_path, about, message):
    run, _ = write_run(tmp_path / "run", **about)
    place = tmp_path / "model"
    with pytest.raises(ExportRefused, match=f"{message}.*--force"):
        export_pretrained(run, place)
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    cli("export", run, place, "--force")
    # Whoever finds it is told too.
    text = (place / "README.md").read_text()
    assert re.search(f"Exported by force. .*{message}", text)


class Trained(VQBrain):
    def compute_forward(self, batch, stage):
        x = batch[0]
        latents, lengths = self.modules.encoder(x, torch.ones(len(x)))
        return self.modules.quantizer(latents, lengths)

    def compute_objectives(self, output, batch, stage):
        return output.quantized.square().mean() + output.loss

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.checkpointer.save_checkpoint(meta={"loss": stage_loss})


@pytest.mark.parametrize("checkpointer", [Checkpointer, AtomicCheckpointer])
def test_a_model_in_its_warm_up_needs_force(tmp_path, checkpointer):
    run, modules = write_run(tmp_path / "run")
    shutil.rmtree(run / "save")
    brain = Trained(
        {name: modules[name] for name in ("encoder", "quantizer")},
        lambda p: torch.optim.Adam(p, lr=0.001),
        {"reinit_schedule": ReinitSchedule(warmup=3, every=100)},
        checkpointer=checkpointer(run / "save", modules),
    )
    data = [(torch.randn(30, 20),) for _ in range(2)]
    brain.fit(range(1), data, progressbar=False)
    with pytest.raises(ExportRefused, match="still in its warm-up"):
        export_pretrained(run, tmp_path / "model")
    forced = export_pretrained(run, tmp_path / "forced", force=True)
    quantizer = load_pretrained(forced)["modules"]["quantizer"]
    with pytest.raises(RuntimeError, match="warm-up"):
        quantizer.encode(torch.randn(3, 8))
    # The same Brain, past it: that checkpoint is taken, not the others.
    brain.fit(range(1), data, progressbar=False)
    model = export_pretrained(run, tmp_path / "model", min_key="loss")
    assert_same(modules, load_pretrained(model)["modules"])
    assert (model / "codebook_usage.png").read_bytes()[1:4] == b"PNG"
    # Nobody watched the validation: NaN is in no file.
    assert "NaN" not in (model / "config.json").read_text()


@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_finite_is_never_exported(tmp_path, force):
    run, _ = write_run(tmp_path / "run", fill(math.nan, 2))
    message = "'encoder.last.bias': values are NaN or infinite"
    with pytest.raises(ExportRefused, match=message) as raised:
        export_pretrained(run, tmp_path / "model", force=force)
    assert "force" not in str(raised.value)
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize("force", [False, True])
def test_a_yaml_that_is_not_data_is_never_exported(tmp_path, force):
    yaml = YAML.replace("token_rate: 50.0", "token_rate: !apply:abs [-50]")
    run, _ = write_run(tmp_path / "run", yaml=yaml)
    with pytest.raises(ExportRefused, match="abs is refused"):
        export_pretrained(run, tmp_path / "model", force=force)
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize(
    "arguments, norm",
    [
        (" [robust, 8, 32]", True),
        (
            """
        preset: robust
        input_dim: 8
        codebook_size: 32
        reinit_schedule: null""",
            True,
        ),
        (
            """
        preset:
            norm: null
            codebook: ema
            codebook_weight: 0.0
            reservoir_size: 99
            reinit_schedule: !new:speechbrain_vq.training.ReinitSchedule
                warmup: 3
            codebook_lr_multiplier: 1.0
        input_dim: 8
        codebook_size: 32""",
            False,
        ),
    ],
)
def test_the_quantizer_of_a_preset_is_written_out(arguments, norm, tmp_path):
    plain = """!new:speechbrain_vq.nnet.VectorQuantizer
        input_dim: 8
        codebook_size: 32"""
    made = "!apply:speechbrain_vq.nnet.VectorQuantizer.from_preset" + arguments
    run, _ = write_run(tmp_path / "run", yaml=YAML.replace(plain, made))
    place = export_pretrained(run, tmp_path / "model")
    text = (place / "hyperparams.yaml").read_text()
    assert "!apply" not in text and "reinit_schedule" not in text
    assert "!new:speechbrain_vq.nnet.VectorQuantizer\n" in text
    quantizer = VQTokenizer.from_hparams(place).mods.quantizer
    assert (quantizer.norm is not None) == norm
    assert ("EMA" in repr(quantizer)) != norm
    assert quantizer.reservoir.capacity == 0


@pytest.mark.parametrize(
    "size, percent, perplexity, vectors, dead",
    [
        (512, 7.0, 20.0, 9000, False),
        (512, 4.0, 8.0, 9000, True),
        (512, 20.0, 1.9, 9000, True),
        # Of 100 vectors no more than 100 codes are used.
        (65536, 0.1, 60.0, 100, False),
        # Two codes have a perplexity of at most 2.
        (2, 100.0, 1.8, 9000, False),
        (2, 50.0, 1.0, 9000, True),
        # Nothing was seen.
        (512, 0.0, 1.0, 0, False),
        (512, math.nan, math.nan, 0, False),
    ],
)
def test_how_dead_is_dead(size, percent, perplexity, vectors, dead):
    names = {"used_codes_percent": percent, "perplexity": perplexity}
    names["vectors"] = vectors
    alone = {f"valid_{key}": value for key, value in names.items()}
    assert bool(describe_dead_codebook("q", size, alone)) == dead
    among = {f"train_q.{key}": value for key, value in names.items()}
    assert bool(describe_dead_codebook("q", size, among)) == dead
    assert describe_dead_codebook("other", size, among) is None
    # Validation counts more than training.
    if vectors and not math.isnan(perplexity):
        mixed = {**among, "train_q.perplexity": 99.0, **alone}
        text = describe_dead_codebook("q", size, mixed)
        assert bool(text) == dead
        assert not dead or "over the validation set" in text


# Whole or not at all


@pytest.mark.parametrize("name", ["notes.txt", ".git"])
def test_what_is_no_export_is_never_replaced(tmp_path, name):
    run, _ = write_run(tmp_path / "run")
    model = export_pretrained(run, tmp_path / "model")
    (model / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"contains {name}.*lost"):
        export_pretrained(run, model, force=True)
    assert (model / name).read_text() == "mine"
    with pytest.raises(FileExistsError, match="is not a folder"):
        export_pretrained(run, run / "hyperparams.yaml")


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    run, _ = write_run(tmp_path / "run")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speechbrain_vq.hub.folder.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export_pretrained(run, tmp_path / "new" / "model")
    assert not list((tmp_path / "new").glob("*"))


def test_without_matplotlib_there_are_no_plots(tmp_path, monkeypatch, caplog):
    run, _ = write_run(tmp_path / "run")
    write_minispeech(run)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.INFO):
        model = export_pretrained(run, tmp_path / "model")
    assert not list(model.glob("*.png"))
    assert "![" not in (model / "README.md").read_text()
    assert "speechbrain-vq[report]" in caplog.text


# Runs of version 0.1


def as_version_0_1(checkpoint, bypass):
    """Gives a checkpoint the names and the states that 0.1 gave it."""
    path = checkpoint / "quantizer.ckpt"
    state = torch.load(path)
    if "embedding.weight" in state:
        state["codewords.weight"] = state.pop("embedding.weight")
    state["_extra_state"] = {"bypass": bypass}
    rows = {"rows": torch.zeros(0, 8), "count": torch.tensor(0)}
    state["reservoir._extra_state"] = rows
    torch.save(state, path)


def test_codes_of_an_old_run_are_what_they_were(tmp_path):
    def shrink(modules):
        # So that it matters what is added to the variance.
        norm = modules["quantizer"].norm
        norm.running_mean.zero_(), norm.running_var.fill_(1e-6)

    run, modules = write_run(tmp_path / "run", shrink)
    (checkpoint,) = (run / "save").iterdir()
    as_version_0_1(checkpoint, bypass=True)
    with pytest.raises(ExportRefused, match="still in its warm-up"):
        export_pretrained(run, tmp_path / "model")
    as_version_0_1(checkpoint, bypass=False)
    model = export_pretrained(run, tmp_path / "model")
    loaded = load_pretrained(model)["modules"]
    x, quantizer = 0.001 * torch.randn(1, 200, 8), modules["quantizer"]
    codes = loaded["quantizer"].encode(x)
    # The epsilon of version 0.1 is now a part of the variance.
    assert not torch.equal(quantizer.encode(x), codes)
    quantizer.norm.running_var += 1e-5
    assert_same(modules, loaded)
    assert torch.equal(quantizer.encode(x), codes)
