"""Draw codebook collapse: the same autoencoder with several quantizers.

To run it in ten minutes on one core (FOLDER is for MiniSpeech):
> python benchmarks/collapse.py FOLDER docs/images/collapse.png

A small autoencoder of log-mels is trained with the presets ``vanilla`` and
``robust``, and with quantizers from vector-quantize-pytorch. Every 20 steps, it
counts the distinct codes used on the validation set. Requires
`pip install "speechbrain-vq[bench]"`.
"""

import functools
import pathlib

import click
import matplotlib.pyplot as plt
import torch
import vector_quantize_pytorch as vqp
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_vq import CodebookTrainer, VectorQuantizer
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.lobes.features import LogMel
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import (
    data_root,
    prepare_minispeech,
)

DIM, SIZE, STEPS, EVERY, FRAMES, UTTS = 64, 512, 800, 20, 128, 200
DEAD = {"kmeans_init": True, "threshold_ema_dead_code": 2}
# Color, constructor and arguments, by name
QUANTIZERS = {
    "robust": ("#0f766e", VectorQuantizer.from_preset, ("robust", DIM, SIZE)),
    "vqp: EMA, k-means, dead codes": (
        "#7c3aed",
        functools.partial(vqp.VectorQuantize, **DEAD),
        (DIM, SIZE),
    ),
    "vqp: EMA, its default": ("#2563eb", vqp.VectorQuantize, (DIM, SIZE)),
    "vqp: FSQ": ("#6b7280", vqp.FSQ, ([8, 8, 8], DIM)),
    "vanilla": ("#c2410c", VectorQuantizer.from_preset, ("vanilla", DIM, SIZE)),
}


def load(folder: pathlib.Path, split: str) -> list[torch.Tensor]:
    """Load the log-mels of the first utterances of a split, [T, 80] each."""
    dataset = DynamicItemDataset.from_json(
        folder / f"{split}.json", {"data_root": data_root(folder)}
    )
    features = LogMel()
    wavs = [
        read_audio(dataset.data[name]["wav"], 16000).unsqueeze(0)
        for name in list(dataset.data)[:UTTS]
    ]
    return [features(wav, torch.ones(1))[0][0] for wav in wavs]


def network(quantizer: torch.nn.Module) -> torch.nn.ModuleDict:
    """Build an autoencoder with 50 tokens per second around a quantizer."""
    return torch.nn.ModuleDict(
        {
            "encoder": torch.nn.Sequential(
                torch.nn.Conv1d(80, 128, 4, stride=2, padding=1),
                torch.nn.ReLU(),
                torch.nn.Conv1d(128, 64, 3, padding=1),
            ),
            "quantizer": quantizer,
            "decoder": torch.nn.Sequential(
                torch.nn.Conv1d(64, 128, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.ConvTranspose1d(128, 80, 4, stride=2, padding=1),
            ),
        }
    )


def forward(model, mels):
    """Reconstruct log-mels [B, T, 80]; return the error, codes and VQ loss."""
    latents = model["encoder"](mels.mT).mT
    # FSQ returns no loss.
    quantized, codes, *loss = model["quantizer"](latents)[:3]
    error = (model["decoder"](quantized.mT).mT - mels).abs().mean()
    return error, codes, sum(loss)


def train(name: str, train_set, valid) -> tuple[list, torch.Tensor]:
    """Train with a quantizer; return (step, used codes) and sorted final counts."""
    torch.manual_seed(0)
    _, make, arguments = QUANTIZERS[name]
    quantizer = make(*arguments)
    model = network(quantizer)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if name == "robust":
        CodebookTrainer(model, optimizer, total_steps=STEPS)
    used, counts = [], None
    for step in range(STEPS + 1):
        if step % EVERY == 0 and not getattr(quantizer, "bypass", False):
            model.eval()
            with torch.no_grad():
                codes = forward(model, valid)[1]
            model.train()
            counts = torch.bincount(codes.flatten().long(), minlength=SIZE)
            used.append((step, int((counts > 0).sum())))
        picked = torch.randint(len(train_set), (16,)).tolist()
        error, _, loss = forward(model, train_set[picked])
        (error + loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return used, counts.sort(descending=True).values


def pieces(mels: list[torch.Tensor], mean, std) -> torch.Tensor:
    """Cut log-mels into normalized pieces [N, FRAMES, 80]."""
    cut = [piece for mel in mels for piece in mel.split(FRAMES)]
    cut = [piece for piece in cut if len(piece) == FRAMES]
    return (torch.stack(cut) - mean) / std


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=pathlib.Path))
@click.argument("picture", type=click.Path(path_type=pathlib.Path))
def main(folder, picture):
    """Train with all quantizers and draw the plot."""
    prepare_minispeech(folder)
    mels, valid = load(folder, "train"), load(folder, "valid")
    together = torch.cat(mels)
    mean, std = together.mean(0), together.std(0)
    train_set, valid = pieces(mels, mean, std), pieces(valid, mean, std)
    figure, (curve, usage) = plt.subplots(
        1, 2, figsize=(9, 3.8), layout="constrained"
    )
    for name, (color, *_) in QUANTIZERS.items():
        used, counts = train(name, train_set, valid)
        steps, numbers = zip(*used, strict=True)
        curve.plot(steps, numbers, color=color, label=name)
        usage.plot(range(1, SIZE + 1), counts, color=color, label=name)
        print(f"{name}: {numbers[-1]} of {SIZE} codes used", flush=True)
        if name == "robust":
            curve.axvspan(0, steps[0], color=color, alpha=0.1, lw=0)
            curve.text(
                steps[0] / 2, SIZE / 2, "warm-up:\nno codes yet", ha="center"
            )
    curve.set(
        title="Codes used on the validation set",
        xlabel="optimizer step",
        ylabel=f"codes, of {SIZE}",
        xlim=(0, STEPS),
        ylim=(0, SIZE),
    )
    usage.set(
        title="Usage at the end",
        xlabel="code, most frequent first",
        ylabel="tokens",
        yscale="symlog",
        xlim=(1, SIZE),
        ylim=(0, None),
    )
    for axes in (curve, usage):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *curve.get_legend_handles_labels(),
        **{"loc": "outside lower center", "ncols": 5, "frameon": False},
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
