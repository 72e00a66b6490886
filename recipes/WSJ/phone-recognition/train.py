"""Recipe for recognizing English phones with CTC through a vector quantizer.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=WSJ --lexicon=cmudict.dict

To train the codebook differently, add --preset=vanilla, for example.
--preset=none has no bottleneck. Recipes of this task for other corpora import
this file.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import run_on_main

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.dataset import TrainingReader
from speechbrain_vq.dataio.manifests import SPLITS
from speechbrain_vq.recipes.common.phones import (
    PhoneErrorsMixin,
    add_labels,
    read_split,
)
from speechbrain_vq.recipes.common.runs import (
    AnnealingBrain,
    build_brain,
    finish,
    fit_and_test,
    fit_features,
    prepared,
    start,
)
from speechbrain_vq.recipes.WSJ.wsj_prepare import prepare


class PhoneBrain(PhoneErrorsMixin, AnnealingBrain):
    """Train a phone recognizer with a vector-quantized bottleneck and CTC."""

    def compute_forward(self, batch, stage):
        """Compute log-probabilities of phones and the quantizer's output."""
        batch = batch.to(self.device)
        features, lengths = self.modules.features(*batch.sig)
        latents, lengths = self.modules.encoder(features, lengths)
        vq = self.modules.quantizer(latents, lengths)
        logits = self.modules.recogniser(vq.quantized, lengths)
        # The corpus may have fewer phones than num_labels.
        logits = logits[..., : len(self.hparams.label_encoder)]
        return logits.log_softmax(-1), lengths, vq

    def compute_objectives(self, predictions, batch, stage):
        """Compute the weighted CTC loss plus the quantizer's loss."""
        log_probs, lengths, vq = predictions
        ctc = self.ctc_loss(log_probs, lengths, batch, stage)
        return self.hparams.ctc_weight * ctc + vq.loss


def dataio_prep(hparams: dict, folder: pathlib.Path) -> dict:
    """Build the datasets of a folder of manifests."""
    encoder, rate = hparams["label_encoder"], hparams["token_rate"]
    datasets = {s: read_split(hparams, folder, s, rate) for s in SPLITS}
    add_labels(encoder, datasets, hparams["save_folder"])
    if len(encoder) > hparams["num_labels"]:
        raise ValueError(
            f"The data has {len(encoder) - 2} phones, too many for "
            f"num_labels, which includes the blank and <unk>: give "
            f"--num_labels={len(encoder)}."
        )
    read = TrainingReader(hparams["sample_rate"])
    for dataset in datasets.values():
        dataset.add_dynamic_item(read, ["wav", "length"], "sig")
        dataset.set_output_keys(["id", "sig", "phone_names", "labels"])
    return {
        split: dataset.filtered_sorted(sort_key="length")
        for split, dataset in datasets.items()
    }


def make_sampler(
    hparams: dict, train: DynamicItemDataset
) -> DynamicBatchSampler:
    """Build a sampler of batches of similar lengths, from buckets of equal size."""
    lengths = [item["length"] for item in train.data.values()]
    shares = np.linspace(0, 1, hparams["num_buckets"] + 1)[1:]
    return DynamicBatchSampler(
        train,
        max_batch_length=hparams["batch_size"] * max(lengths),
        max_batch_ex=hparams["batch_size"],
        bucket_boundaries=sorted(set(np.quantile(lengths, shares).tolist())),
        length_func=lambda item: item["length"],
        seed=hparams["seed"],
    )


def train(hparams: dict, run_opts: Any, folder: pathlib.Path) -> PhoneBrain:
    """Train and test on a folder of manifests, and return the Brain."""
    datasets = dataio_prep(hparams, folder)
    fit_features(hparams["features"], datasets["train"].data)
    brain = build_brain(PhoneBrain, hparams, run_opts)
    sampler = brain.train_sampler = make_sampler(hparams, datasets["train"])
    fit_and_test(brain, datasets, batch_sampler=sampler)
    errors = pathlib.Path(hparams["output_folder"], "per.txt")
    run_on_main(brain.write_errors, args=[errors])
    run_on_main(finish, args=[hparams, brain])
    return brain


def run(prepare: Callable[..., pathlib.Path], argv: list[str]) -> PhoneBrain:
    """Run the recipe of a corpus from its command line, and return the Brain.
    ``prepare`` writes the manifests from the yaml's ``corpus``, and returns
    their folder."""
    hparams, run_opts = start(argv)
    return train(hparams, run_opts, prepared(prepare, hparams))


if __name__ == "__main__":
    with clean_errors():
        run(prepare, sys.argv[1:])
