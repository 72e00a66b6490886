"""A tiny run folder, as a recipe leaves it."""

import json
import pathlib

import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpointer

YAML = """
sample_rate: 16000
token_rate: 50.0
lr: 0.001
arm: robust
seed: 7
output_folder: {folder}
save_folder: {folder}/save
manifest_folder: {folder}/manifests
pretrained_path: {folder}/elsewhere
encoder: &encoder !new:speechbrain_vq.lobes.autoencoder.ConvEncoder
    input_dim: 20
    output_dim: 8
    channels: 16
modules:
    features: !new:speechbrain_vq.lobes.features.LogMel
        n_mels: 20
    encoder: *encoder
    quantizer: !new:speechbrain_vq.nnet.VectorQuantizer
        input_dim: 8
        codebook_size: 32
    speaker: !new:speechbrain_vq.lobes.autoencoder.SpeakerEncoder
        input_dim: 20
        output_dim: 4
    decoder: !new:speechbrain_vq.lobes.autoencoder.ConvDecoder
        input_dim: 8
        output_dim: 20
        speaker_dim: 4
        channels: 16
optimizer: !name:torch.optim.Adam
    lr: 0.001
"""
# As VQMixin notes them.
USED = {"used_codes_percent": 87.5, "perplexity": 20.25, "vectors": 1000}
USED = {f"valid_{key}": value for key, value in USED.items()}
RESULTS = {
    "preset": "robust",
    "seed": 7,
    "steps": 30,
    "reconstruction_error": 0.337251,
    "pnmi": 0.6123,
    "vectors": 1234,
    "used_codes_percent": 84.375,
    "perplexity": 21.5,
    "dead_codes": 5,
    "bits_per_second": 221.4,
}


def write_run(folder, change=lambda parts: None, yaml=YAML, kept=None, **meta):
    """Writes the folder of a run, or one more checkpoint into it.

    `change` may spoil its modules before they are saved; `kept` is what a VQ
    Brain keeps of the training; the rest is noted with the checkpoint."""
    folder.mkdir(exist_ok=True)
    text = yaml.format(folder=folder)
    (folder / "hyperparams.yaml").write_text(text)
    torch.manual_seed(0)
    modules = load_hyperpyyaml(text)["modules"]
    if "quantizer" in modules:
        modules["features"].fit([torch.randn(1, 16000)])
        mels = modules["features"](torch.randn(4, 16000), torch.ones(4))
        modules["quantizer"](*modules["encoder"](*mels))
        modules["quantizer"].reinitialize()
    change(modules)
    checkpointer = Checkpointer(folder / "save", modules)
    saved = checkpointer.save_checkpoint(meta={"loss": 1.0, **meta})
    if kept is not None:
        torch.save(kept, saved.path / "codebook_trainer.ckpt")
    return folder, modules


def write_minispeech(folder: pathlib.Path, corpus="minispeech") -> None:
    """Gives a run a corpus of noise that says it is MiniSpeech."""
    manifests = folder / "manifests"
    manifests.mkdir(parents=True)
    soundfile.write(manifests / "{a}.flac", torch.randn(8000) / 10, 16000)
    item = {"wav": "{data_root}/{{a}}.flac", "length": 0.5, "lang": "en"}
    (manifests / "test.json").write_text(json.dumps({"a": item}))
    about = {"corpus": corpus, "minutes": 1.0, "data_root": "."}
    (manifests / "corpus.json").write_text(json.dumps(about))
