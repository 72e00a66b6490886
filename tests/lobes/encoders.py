"""Small speaker encoders in the layout of SpeechBrain's model folders."""

import pathlib

import torch
from hyperpyyaml import load_hyperpyyaml

PARTS = """
compute_features: &features !new:speechbrain.lobes.features.Fbank
    n_mels: 24
mean_var_norm: &norm !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: false
"""
SPEAKER = """
speaker: !new:speechbrain_vq.lobes.speakers.PretrainedSpeaker
    compute_features: *features
    mean_var_norm: *norm
    embedding_model: *model
    embedding_dim: 16
    output_dim: 8
"""
ECAPA = f"""{PARTS}
embedding_model: &model !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 24
    channels: [16, 16, 16, 16, 32]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 128
    lin_neurons: 16
{SPEAKER}"""
XVECTOR = f"""{PARTS}
embedding_model: &model !new:speechbrain.lobes.models.Xvector.Xvector
    in_channels: 24
    activation: !name:torch.nn.LeakyReLU
    tdnn_blocks: 5
    tdnn_channels: [16, 16, 16, 16, 32]
    tdnn_kernel_sizes: [5, 3, 3, 1, 1]
    tdnn_dilations: [1, 2, 3, 1, 1]
    lin_neurons: 16
{SPEAKER}"""
# Other entries of the pretrained encoder's hyperparams.yaml.
REST = """
mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    std_norm: false
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    mean_var_norm_emb: !ref <mean_var_norm_emb>
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        mean_var_norm_emb: !ref <mean_var_norm_emb>
        label_encoder: !ref <label_encoder>
"""


def build_speaker(yaml: str) -> torch.nn.Module:
    """Build the ``PretrainedSpeaker`` of a yaml."""
    torch.manual_seed(0)
    return load_hyperpyyaml(yaml)["speaker"]


def write_encoder(folder: pathlib.Path, yaml: str) -> pathlib.Path:
    """Write a model folder like ``speechbrain/spkrec-ecapa-voxceleb``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.removesuffix(SPEAKER) + REST
    (folder / "hyperparams.yaml").write_text(text)
    torch.manual_seed(1)
    hparams = load_hyperpyyaml(text)
    model, norm = hparams["embedding_model"], hparams["mean_var_norm_emb"]
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(value + torch.rand_like(value) / 10)
    torch.save(model.state_dict(), folder / "embedding_model.ckpt")
    norm(torch.randn(2, 3, 16), torch.ones(2), epoch=0)
    norm._save(folder / "mean_var_norm_emb.ckpt")
    hparams["label_encoder"].update_from_iterable(["ann", "bob"])
    hparams["label_encoder"].save(folder / "label_encoder.txt")
    return folder
