"""Recipe for training an image autoencoder with a vector-quantized bottleneck.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=data/cifar10

To train the codebook differently, add --preset=vanilla, for example.
--preset=none has no bottleneck.
"""

import math
import pathlib
import sys

import speechbrain as sb
import torch
from PIL import Image
from speechbrain.utils.distributed import run_on_main
from torch.utils.data import TensorDataset

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.lobes.images import truncated_levels
from speechbrain_vq.nnet.losses import entropy
from speechbrain_vq.recipes.CIFAR10.cifar10_prepare import (
    SPLITS,
    prepare,
    read_images,
)
from speechbrain_vq.recipes.common.runs import (
    AnnealingBrain,
    build_brain,
    finish,
    fit_and_test,
    prepared,
    start,
)

IN_PICTURE = 12  # Images drawn per evaluation


class ImageBrain(AnnealingBrain):
    """Train an autoencoder of images with a vector-quantized bottleneck."""

    def compute_forward(self, batch, stage):
        """Compute the logits of pixel levels and the quantizer's output."""
        images = batch[0].to(self.device)
        vq = self.modules.quantizer(self.modules.encoder(images))
        return images, self.modules.decoder(vq.quantized), vq

    def compute_objectives(self, predictions, batch, stage):
        """Compute nats per dimension plus the quantizer's loss."""
        images, logits, vq = predictions
        levels = images.long()
        if self.hparams.official_truncation:
            levels = truncated_levels(images)
        nats = torch.nn.functional.cross_entropy(logits, levels)
        if stage != sb.Stage.TRAIN:
            self.count(images, logits, nats, vq)
        return nats + vq.loss

    def count(self, images, logits, nats, vq):
        """Add a batch to the sums over the whole set."""
        self.nats += float(nats) * images.numel()
        self.dimensions += images.numel()
        self.codes += vq.indices.numel()
        self.usage = self.usage + vq.metrics["counts"].double().cpu()
        if self.shown is None:
            first = slice(IN_PICTURE)
            self.shown = images[first].cpu(), logits[first].argmax(1).cpu()

    def stage_metrics(self, stage):
        """Compute bits per dimension and perplexities over the whole set.

        The prior over codes is uniform: a code costs the logarithm of the
        codebook size, regardless of how often it is used.
        """
        bits = self.nats / self.dimensions / math.log(2)
        # Truncated levels are a different target, with incomparable bits.
        kind = "truncated_" if self.hparams.official_truncation else ""
        metrics = {f"{kind}reconstruction_bits_per_dim": bits}
        if self.hparams.quantizer.bypass:
            return metrics
        rate = self.codes * math.log2(self.hparams.codebook_size)
        metrics["code_bits_per_dim"] = rate / self.dimensions
        metrics[f"{kind}bits_per_dim"] = bits + rate / self.dimensions
        perplexities = entropy(self.usage).exp()
        metrics["perplexity_sum"] = float(perplexities.sum())
        metrics["perplexity_least"] = float(perplexities.min())
        return metrics

    def on_stage_start(self, stage, epoch=None):
        """Reset the sums."""
        self.nats, self.dimensions, self.codes = 0.0, 0, 0
        self.usage, self.shown = 0.0, None

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Draw images and log; save a checkpoint or keep the test results."""
        if stage != sb.Stage.TRAIN:
            is_test = stage == sb.Stage.TEST
            name = "test" if is_test else f"epoch_{epoch:04d}"
            run_on_main(self.draw, args=[f"{name}.png"])
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST and not self.hparams.quantizer.bypass:
            self.results["perplexities"] = entropy(self.usage).exp().tolist()

    def draw(self, name):
        """Draw some images with their reconstructions below."""
        rows = [torch.cat(list(images), dim=-1) for images in self.shown]
        pixels = torch.cat(rows, dim=-2).to(torch.uint8).permute(1, 2, 0)
        picture = Image.fromarray(pixels.squeeze(-1).numpy())
        folder = pathlib.Path(self.hparams.picture_folder)
        folder.mkdir(parents=True, exist_ok=True)
        picture = picture.resize([4 * side for side in picture.size], 0)
        with atomic_write(folder / name) as partial:
            picture.save(partial)


if __name__ == "__main__":
    with clean_errors():
        hparams, run_opts = start(sys.argv[1:])
        folder = prepared(prepare, hparams)
        datasets = {
            split: TensorDataset(read_images(folder, split)) for split in SPLITS
        }
        brain = build_brain(ImageBrain, hparams, run_opts)
        fit_and_test(brain, datasets)
        run_on_main(finish, args=[hparams, brain])
