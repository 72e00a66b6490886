"""Recipe for discovering units of handwriting with a vector-quantized autoencoder
of lines, after arXiv 2005.08520.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=data

To train the codebook differently, add --preset=vanilla, for example.
"""

import functools
import math
import sys

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import run_on_main

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.dataset import random_start
from speechbrain_vq.dataio.manifests import read_json
from speechbrain_vq.evaluation.phone_units import (
    PhoneUnitCounts,
    nmi,
    phone_purity,
)
from speechbrain_vq.lobes.pixelcnn import grey_levels
from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.recipes.common.runs import (
    AnnealingBrain,
    build_brain,
    finish,
    fit_and_test,
    prepared,
    start,
    use_of_codes,
)
from speechbrain_vq.recipes.ScribbleLens.scribblelens_prepare import (
    prepare,
    read_image,
)


class HandwritingBrain(AnnealingBrain):
    """Train an autoencoder of lines with a vector-quantized bottleneck, and a
    character probe on the codewords whose gradient does not reach the model."""

    def init_optimizers(self):
        """Build separate optimizers for model and probe, so that gradient
        clipping of the model does not depend on the probe."""
        probe = list(self.modules.probe.parameters())
        probe_ids = {id(parameter) for parameter in probe}
        model = [p for p in self.modules.parameters() if id(p) not in probe_ids]
        self.optimizers_dict = {
            "model": self.opt_class(model),
            "probe": self.hparams.probe_opt_class(probe),
        }
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                self.checkpointer.add_recoverable(
                    f"{name}_optimizer", optimizer
                )

    def compute_forward(self, batch, stage):
        """Compute pixel logits, the quantizer's and the probe's output."""
        batch = batch.to(self.device)
        ink, lengths = batch.ink
        latents, token_lengths = self.modules.encoder(ink, lengths)
        vq = self.modules.quantizer(latents, token_lengths)
        mixed = self.modules.mixer(vq.quantized, token_lengths)
        levels = grey_levels(ink, self.hparams.num_levels)
        logits = self.modules.decoder(levels, mixed)
        log_probs = self.modules.probe(vq.quantized.detach())
        return levels, logits, vq, log_probs, token_lengths

    def compute_objectives(self, predictions, batch, stage):
        """Compute nats per pixel plus the quantizer's and the probe's loss."""
        levels, logits, vq, log_probs, token_lengths = predictions
        mask = frame_mask(levels.unsqueeze(-1), batch.ink.lengths)
        nats = torch.nn.functional.cross_entropy(
            logits.permute(0, 3, 1, 2), levels, reduction="none"
        )
        nats, pixels = (nats * mask).sum(), mask.sum()
        ctc = self.hparams.probe.loss(log_probs, token_lengths, batch.text)
        if stage != sb.Stage.TRAIN:
            self.nats += float(nats)
            self.pixels += int(pixels)
            self.count_errors(batch, log_probs, token_lengths)
        if stage == sb.Stage.TEST and not self.hparams.quantizer.bypass:
            self.count_codes(batch, vq.indices, token_lengths)
        return nats / pixels + vq.loss + ctc

    def count_errors(self, batch, log_probs, lengths):
        """Add a batch to the probe's character errors."""
        probe = self.hparams.probe
        self.errors.append(
            batch.id,
            [list(text) for text in probe.read(log_probs, lengths)],
            [list(probe.in_alphabet(text)) for text in batch.text],
        )

    def count_codes(self, batch, indices, lengths):
        """Add a batch to the table of characters and codes."""
        tokens = torch.round(lengths * indices.shape[1]).long().tolist()
        # Only the first codebook, if there are several.
        indices = indices.view(*indices.shape[:2], -1)[..., 0]
        for name, codes, number in zip(
            batch.id, indices.tolist(), tokens, strict=True
        ):
            self.codes.add(codes[:number], self.characters[name])

    def on_stage_start(self, stage, epoch=None):
        """Reset the sums and tables."""
        self.nats, self.pixels = 0.0, 0
        self.errors = self.hparams.error_rate_computer()
        # Characters have positions in columns, where phones have seconds.
        self.codes = PhoneUnitCounts(
            self.hparams.codebook_size, 1 / self.hparams.stride
        )

    def stage_metrics(self, stage):
        """Compute bits per pixel, the probe's character error rate and, in the
        test, how well codes predict characters."""
        metrics = {
            "bits_per_dim": self.nats / self.pixels / math.log(2),
            "cer": self.errors.summarize("error_rate"),
        }
        counts = self.codes.counts()
        if len(counts):
            metrics["mapping_accuracy"] = phone_purity(counts)
            metrics["nmi"] = nmi(counts)
        return metrics


def check_batches(hparams, train):
    """Raise ValueError if a batch is larger than an epoch, since incomplete
    batches are dropped."""
    size = hparams["batch_size"]
    if size > len(train):
        raise ValueError(
            f"--batch_size={size}, but an epoch has only {len(train)} chunks "
            "of lines: nothing would be trained. Use "
            f"--batch_size={len(train)} or less, or a larger --oversample "
            f"than {hparams['oversample']}."
        )


def chunk_of(name, epoch, width, chunk):
    """Choose a random chunk of a line; return its first column and its end."""
    start = round(random_start(name, epoch, width, chunk))
    return start, min(start + chunk, width)


def dataio_prep(hparams, folder):
    """Build the datasets of a folder of manifests. Training lines are repeated
    ``oversample`` times, each time with a random chunk."""
    source = read_json(folder / "prepared.json")["source"]
    read = functools.cache(read_image)

    def cut(name, first, last):
        gray = read(f"{source}/{name}")[first:last]
        return 1 - torch.from_numpy(gray).float() / 255

    @sb.utils.data_pipeline.takes("id", "image", "width", "characters")
    @sb.utils.data_pipeline.provides("ink", "text")
    def chunk(name, image, width, characters):
        epoch = hparams["epoch_counter"].current
        first, last = chunk_of(name, epoch, width, hparams["chunk"])
        yield cut(image, first, last)
        yield "".join(
            character
            for x0, x1, character in characters
            if first <= (x0 + x1) / 2 < last
        )

    @sb.utils.data_pipeline.takes("image")
    @sb.utils.data_pipeline.provides("ink")
    def whole(image):
        return cut(image, None, None)

    datasets = {}
    for split in ("train", "valid", "test"):
        data = read_json(folder / f"{split}.json")
        if split == "train":
            data = {
                f"{name}-{copy}": {k: v for k, v in item.items() if k != "text"}
                for name, item in data.items()
                for copy in range(hparams["oversample"])
            }
        dataset = DynamicItemDataset(data)
        dataset.add_dynamic_item(chunk if split == "train" else whole)
        dataset.set_output_keys(["id", "ink", "text"])
        datasets[split] = dataset.filtered_sorted(
            sort_key=None if split == "train" else "width"
        )
    return datasets


def use_of_fillable(brain):
    """Compute the codebook usage on the test set, also relative to the maximum
    possible with its number of frames. Empty without quantization."""
    stats = use_of_codes(brain, "test")
    if not stats.get("vectors"):
        return {}
    size = brain.hparams.codebook_size
    codes = min(size, stats["vectors"])
    used = stats["used_codes_percent"] * size / codes
    return {**stats, "fillable_codes": codes, "used_of_fillable_percent": used}


if __name__ == "__main__":
    with clean_errors():
        hparams, run_opts = start(sys.argv[1:])
        datasets = dataio_prep(hparams, prepared(prepare, hparams))
        check_batches(hparams, datasets["train"])
        brain = build_brain(HandwritingBrain, hparams, run_opts)
        brain.characters = {
            name: item["characters"]
            for name, item in datasets["test"].data.items()
        }
        fit_and_test(brain, datasets, drop_last=True)
        brain.results |= use_of_fillable(brain)
        run_on_main(finish, args=[hparams, brain])
