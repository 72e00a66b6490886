"""A model that loads at once, as an export leaves it."""

import pathlib

import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import save_file

YAML = """
sample_rate: 16000
modules:
    encoder: !new:torch.nn.Linear
        in_features: 4
        out_features: 3
    quantizer: !new:speechbrain_vq.nnet.VectorQuantizer
        input_dim: 3
        codebook_size: 8
pretrainer: !new:speechbrain_vq.hub.pretrainer.WeightsPretrainer
    modules: !ref <modules>
"""
CARD = "---\nlibrary_name: speechbrain\nlicense: apache-2.0\n---\n# Small\n"


def make_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """What the model's safetensors file holds."""
    torch.manual_seed(seed)
    modules = torch.nn.ModuleDict(load_hyperpyyaml(YAML)["modules"])
    # But for flags.
    return {
        key: torch.randn_like(value) if value.dim() else value
        for key, value in modules.state_dict().items()
        if torch.is_tensor(value)
    }


def write_model(folder: pathlib.Path, seed=0, text=YAML) -> pathlib.Path:
    """Writes the folder; the seed decides the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.yaml").write_text(text)
    save_file(make_weights(seed), folder / "model.safetensors")
    (folder / "config.json").write_text('{"codebook_size": 8}\n')
    (folder / "README.md").write_text(CARD)
    return folder


def read_files(folder: pathlib.Path) -> dict[str, bytes]:
    """The content of every file of a folder, for ``hub.put``."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def holds(modules: dict, weights: dict) -> bool:
    """Whether modules have these weights, bit for bit."""
    state = torch.nn.ModuleDict(modules).state_dict()
    return all(torch.equal(state[key], weights[key]) for key in weights)
