"""A tiny run folder, as a recipe leaves it.

Authors
 * speechbrain_vq authors 2026
"""

import pathlib

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpointer

YAML = """
sample_rate: 16000
token_rate: 50.0
lr: 0.001
arm: robust
save_folder: {folder}/save
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


@pytest.fixture
def make_run(tmp_path):
    """Makes the folder of a run; `change` may spoil its modules."""

    def make(change=lambda modules: None, **meta):
        folder = pathlib.Path(tmp_path) / "run"
        folder.mkdir(exist_ok=True)
        text = YAML.format(folder=folder)
        (folder / "hyperparams.yaml").write_text(text)
        torch.manual_seed(0)
        modules = load_hyperpyyaml(text)["modules"]
        modules["features"].fit([torch.randn(1, 16000)])
        mels, lengths = modules["features"](
            torch.randn(4, 16000), torch.ones(4)
        )
        modules["quantizer"](*modules["encoder"](mels, lengths))
        modules["quantizer"].reestimate()
        change(modules)
        Checkpointer(folder / "save", modules).save_checkpoint(
            meta={"loss": 1.0, **meta}
        )
        return folder, modules

    return make
