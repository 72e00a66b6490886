"""A HiFi-GAN learns to say the units of a tokenizer that does not learn."""

import importlib.util
import json
import types

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_vq import VQTokenizer, export_pretrained
from speechbrain_vq.inference.vocoder_loading import load_vocoder
from speechbrain_vq.lobes.wavenet import WaveNetDecoder
from speechbrain_vq.nnet import ResidualVectorQuantizer
from speechbrain_vq.recipe_files import recipe_path
from tests.inference.conftest import build, make_run
from tests.recipe_tests import processes

__all__ = ["build", "make_run"]

RECIPE = recipe_path("MiniSpeech/unit-vocoder")
SMALL = {
    "codebook_size": 32,
    "speaker_dim": 4,
    "embedding_dim": 16,
    "upsample_initial_channel": 32,
    "resblock_type": 2,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "segment_tokens": 10,
    "segments": 4,
    "batch_size": 2,
    "number_of_steps": 36,
    "adversarial_start": 33,
    "valid_utterances": 1,
    "samples": 1,
    "lr": 0.01,
    "discriminator": "!new:speechbrain.lobes.models.HifiGAN.DiscriminatorP [5]",
}

_spec = importlib.util.spec_from_file_location(
    "unit_vocoder", RECIPE / "train.py"
)
recipe = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipe)


@pytest.fixture
def data(tmp_path):
    """A few buzzing sounds, of which one is short."""
    folder = tmp_path / "data"
    folder.mkdir()
    noise = np.random.default_rng(0)
    items = {}
    for number, seconds in enumerate((0.5, 0.7, 0.6, 0.4, 0.1)):
        time = np.arange(round(seconds * 16000)) / 16000
        wav = np.sign(np.sin(2 * np.pi * (100 + 20 * number) * time)) / 5
        wav += noise.normal(size=len(wav)) / 100
        soundfile.write(folder / f"{number}.wav", wav, 16000)
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


def run(data, tokenizer, output, **changes):
    return processes.run(
        None,
        RECIPE,
        device="cpu",
        data_folder=data,
        tokenizer=tokenizer,
        output_folder=output,
        **{**SMALL, **changes},
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_learns_goes_on_and_speaks(data, tokenizer, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    result = run(data, tokenizer, whole)
    assert result.returncode == 0, result.stdout + result.stderr
    log = (whole / "train_log.txt").read_text()
    errors = [
        float(line.split("valid mel_l1: ")[1])
        for line in log.splitlines()
        if "valid mel_l1" in line
    ]
    assert len(errors) == 5 and errors[-1] < 0.8 * errors[0], errors
    results = json.loads((whole / "results.json").read_text())
    assert results["step"] == 36 and results["utterances"] == 5
    assert results["griffin_lim_mel_l1"] > 0
    assert len(list((whole / "samples").glob("*.wav"))) == 3

    # What was trained is what speaks.
    cpu = {"device": "cpu"}
    spoken = VQTokenizer.from_hparams(
        tokenizer, vocoder=whole / "vocoder", run_opts=cpu
    )
    # The latest: the one with the least loss may be kept beside it.
    checkpoint = max((whole / "save").glob("CKPT*/generator.ckpt"))
    with open(RECIPE / "hparams/train.yaml") as file:
        flags = {**SMALL, "data_folder": "x", "output_folder": "x"}
        generator = load_hyperpyyaml(file, flags)["generator"]
    generator.load_state_dict(torch.load(checkpoint, weights_only=True))
    wav = torch.from_numpy(soundfile.read(data / "0.wav")[0]).float()[None]
    tokens, _ = spoken.encode_batch(wav)
    speaker = spoken.speaker_batch(wav)
    with torch.no_grad():
        expected, _ = generator.eval()(tokens.unsqueeze(-1) + 1, spk=speaker)
    wavs = spoken.decode_batch(tokens, speaker=speaker)
    torch.testing.assert_close(wavs, expected[:, 0], rtol=0, atol=1e-5)

    # A run in two parts ends with the same bits.
    assert run(data, tokenizer, halves, number_of_steps=24).returncode == 0
    assert run(data, tokenizer, halves).returncode == 0
    one, other = (
        load_vocoder(folder / "vocoder").state_dict()
        for folder in (whole, halves)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_no_more_is_validated_than_asked_for(data, tokenizer):
    flags = {**SMALL, "data_folder": str(data), "output_folder": "x"}
    with open(RECIPE / "hparams/train.yaml") as file:
        hparams = load_hyperpyyaml(file, {**flags, "valid_utterances": 3})
    model = VQTokenizer.from_hparams(tokenizer, run_opts={"device": "cpu"})
    datasets = recipe.dataio_prep(hparams, data, model)
    assert len(datasets["valid"]) == 3 and len(datasets["test"]) == 5


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
            "stands for 320 samples.*is 256",
        ),
    ],
)
def test_a_yaml_for_another_tokenizer_is_reported(tokenizer, change, message):
    flags = {**SMALL, "data_folder": "x", "output_folder": "x", **change}
    with open(RECIPE / "hparams/train.yaml") as file:
        hparams = load_hyperpyyaml(file, flags)
    model = VQTokenizer.from_hparams(tokenizer, run_opts={"device": "cpu"})
    with pytest.raises(ValueError, match=message):
        recipe.check_tokenizer(hparams, model)


def begin(folder, tokenizer, **run_opts):
    """A Brain at the start of its test."""
    hparams = {
        "spectrogram_loss": lambda one, other: (
            one[..., :960].std() - other[..., :960].std()
        ).abs(),
        "output_folder": str(folder),
        "samples": 1,
        "sample_rate": 16000,
        "train_logger": types.SimpleNamespace(log_stats=lambda *a, **k: None),
    }
    brain = recipe.VocoderBrain(
        {"generator": torch.nn.Linear(1, 1)},
        None,
        hparams,
        {"device": "cpu", **run_opts},
    )
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
def test_it_is_compared_with_griffin_lim_where_there_is_one(
    kind, build, tmp_path
):
    quantizer = ResidualVectorQuantizer(1, 8, 32)
    tokenizer = build(quantizer if kind == "residual" else None)
    if kind == "wavenet":
        tokenizer.mods["decoder"] = WaveNetDecoder(8, 4, 320)
    brain = begin(tmp_path, tokenizer)
    wavs = torch.rand(1, 16000)
    tokens = tokenizer.sig_to_tokens(wavs)[:, :3]
    for _ in range(2):
        brain.test(batch_of(tokens), torch.rand(1, 1, 960))
    brain.on_stage_end(recipe.sb.Stage.TEST, 0.5)
    assert brain.results["utterances"] == 2
    names = {path.name for path in (tmp_path / "samples").iterdir()}
    kinds = {"speech", "vocoder"} | ({"griffin_lim"} - {kind})
    if kind == "wavenet":
        kinds.remove("griffin_lim")
        assert "griffin_lim_mel_l1" not in brain.results
    else:
        assert brain.results["griffin_lim_mel_l1"] >= 0
    assert names == {f"a_b.{name}.wav" for name in kinds}


def test_the_main_process_alone_writes_samples(build, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "if_main_process", lambda: False)
    tokenizer = build()
    brain = begin(tmp_path, tokenizer)
    tokens = torch.zeros(1, 3, 1, dtype=torch.long)
    brain.test(batch_of(tokens), torch.rand(1, 1, 960))
    assert brain.tested == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option, value",
    [
        ("precision", "bf16"),
        ("grad_accumulation_factor", 2),
        ("max_grad_norm", 1.0),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    option, value, build, tmp_path
):
    recipe.check_options(begin(tmp_path, build()))
    with pytest.raises(ValueError, match=f"--{option}={value} does nothing"):
        recipe.check_options(begin(tmp_path, build(), **{option: value}))
