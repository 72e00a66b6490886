"""Recipe for recognizing English phones by CTC through a vector quantizer.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=WSJ --lexicon=cmudict.dict

To compare with another way of training the codebook, add for example
--preset=vanilla; --preset=none has no bottleneck. The recipes of this task for
other corpora import what is here.
"""

import logging
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import speechbrain as sb
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.dataset import read_dataset
from speechbrain_vq.dataio.manifests import SPLITS
from speechbrain_vq.recipes.common.runs import (
    AnnealingBrain,
    end_epoch,
    finish,
    fit_and_test,
    fit_features,
    prepared,
    start,
    use_of_codes,
)
from speechbrain_vq.recipes.WSJ.wsj_prepare import prepare

logger = logging.getLogger(__name__)


class PhoneBrain(AnnealingBrain):
    """Train a phone recognizer with a quantizer inside, by CTC."""

    def compute_forward(self, batch, stage):
        """Compute the log-probabilities of the phones, and the codes."""
        batch = batch.to(self.device)
        features, lengths = self.modules.features(*batch.sig)
        latents, lengths = self.modules.encoder(features, lengths)
        vq = self.modules.quantizer(latents, lengths)
        logits = self.modules.recogniser(vq.quantized, lengths)
        # The corpus may have fewer phones than the model has room for.
        logits = logits[..., : len(self.hparams.label_encoder)]
        return logits.log_softmax(-1), lengths, vq

    def compute_objectives(self, predictions, batch, stage):
        """Compute the CTC loss plus the quantizer's; count errors outside
        training."""
        log_probs, lengths, vq = predictions
        encoder = self.hparams.label_encoder
        blank = encoder.get_blank_index()
        if stage != sb.Stage.TRAIN:
            decoded = ctc_greedy_decode(log_probs, lengths, blank)
            self.errors.append(
                batch.id, encoder.decode_ndim(decoded), batch.phone_names
            )
        ctc = sb.nnet.losses.ctc_loss(
            log_probs, batch.labels.data, lengths, batch.labels.lengths, blank
        )
        return self.hparams.ctc_weight * ctc + vq.loss

    def on_stage_start(self, stage, epoch=None):
        """Reset the counts."""
        self.errors = ErrorRateStats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, save a checkpoint, and keep the results of the test."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        summary = self.errors.summarize()
        stats = {"loss": stage_loss, "PER": summary["error_rate"]}
        if stage == sb.Stage.VALID:
            end_epoch(self, epoch, stats)
            return
        use = use_of_codes(self, "test")
        self.hparams.train_logger.log_stats(
            {"step": self.optimizer_step}, test_stats={**stats, **use}
        )
        self.results = {
            "steps": self.optimizer_step,
            "per": stats["PER"],
            "phones": summary["num_scored_tokens"],
            "loss": stage_loss,
            **use,
        }


def phone_names(item: dict[str, Any]) -> list[str]:
    """List the phones of an utterance in a manifest.

    Arguments
    ---------
    item : dict
        With ``phone_names``, where their times are not known, or with
        ``phones`` as [start, end, name].

    Returns
    -------
    list of str
        Their names.

    Example
    -------
    >>> phone_names({"phones": [[0.0, 0.1, "t"], [0.1, 0.3, "u"]]})
    ['t', 'u']
    """
    given = item.get("phone_names")
    return given or [name for _, _, name in item.get("phones", [])]


def read_split(hparams: dict, folder: pathlib.Path, split: str):
    """Read the utterances of a split to train or test on: with phones, no more
    of them than frames, and not too long."""
    path = folder / f"{split}.json"
    data = read_dataset(folder, split).data
    total = len(data)
    for name, item in list(data.items()):
        phones = [
            p for p in phone_names(item) if p not in hparams["not_phones"]
        ]
        # CTC has no way through fewer frames than phones.
        most = int(item["length"] * hparams["token_rate"])
        if 0 < len(phones) <= most and item["length"] <= hparams["longest"]:
            item["phone_names"] = phones
        else:
            del data[name]
    if not data:
        raise ValueError(
            f"No utterance of {path} has phones and at most "
            f"{hparams['longest']:g} seconds (--longest)."
        )
    if len(data) < total:
        logger.warning(
            "%s: %d of %d utterances are left out: longer than %g seconds, "
            "without phones, or with more of them than frames",
            path,
            total - len(data),
            total,
            hparams["longest"],
        )
    # Anew, as a data set knows the keys that it began with.
    return DynamicItemDataset(data).filtered_sorted(sort_key="length")


def make_label_encoder(hparams: dict, train: DynamicItemDataset) -> None:
    """Number the phones of the training set; 0 is the blank of CTC."""
    encoder = hparams["label_encoder"]
    encoder.load_or_create(
        pathlib.Path(hparams["save_folder"]) / "label_encoder.txt",
        from_iterables=[[i["phone_names"] for i in train.data.values()]],
        sequence_input=True,
        special_labels={"blank_label": 0, "unk_label": "<unk>"},
    )
    encoder.ignore_len()
    if len(encoder) > hparams["num_labels"]:
        raise ValueError(
            f"The data have {len(encoder) - 2} phones, which with the blank "
            f"and the unknown one is more than num_labels: give "
            f"--num_labels={len(encoder)}."
        )


def dataio_prep(hparams: dict, folder: pathlib.Path) -> dict:
    """Build the datasets of a folder of manifests."""
    datasets = {s: read_split(hparams, folder, s) for s in SPLITS}
    make_label_encoder(hparams, datasets["train"])
    encoder = hparams["label_encoder"]

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def read(path):
        return read_audio(path, hparams["sample_rate"])

    @sb.utils.data_pipeline.takes("phone_names")
    @sb.utils.data_pipeline.provides("labels")
    def label(names):
        return encoder.encode_sequence_torch(names)

    for dataset in datasets.values():
        dataset.add_dynamic_item(read)
        dataset.add_dynamic_item(label)
        dataset.set_output_keys(["id", "sig", "phone_names", "labels"])
    return datasets


def make_sampler(
    hparams: dict, train: DynamicItemDataset
) -> DynamicBatchSampler:
    """Build the sampler of batches of about the same length, as many in each."""
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


def finish_run(brain: PhoneBrain, hparams: dict) -> None:
    """Write the errors and results of the test, and export the model."""
    folder = pathlib.Path(hparams["output_folder"])
    with open(folder / "per.txt", "w", encoding="utf-8") as file:
        brain.errors.write_stats(file)
    finish(hparams, brain.results)


def train(hparams: dict, run_opts: Any, folder: pathlib.Path) -> PhoneBrain:
    """Train on a folder of manifests, and test; return the Brain."""
    datasets = dataio_prep(hparams, folder)
    fit_features(hparams["features"], datasets["train"].data)
    brain = PhoneBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    sampler = brain.train_sampler = make_sampler(hparams, datasets["train"])
    fit_and_test(
        brain, datasets, hparams["valid_batch_size"], batch_sampler=sampler
    )
    run_on_main(finish_run, kwargs={"brain": brain, "hparams": hparams})
    return brain


def run(prepare: Callable[..., pathlib.Path], argv: list[str]) -> PhoneBrain:
    """Run the recipe of a corpus from its command line.

    Arguments
    ---------
    prepare : callable
        Writes the manifests and returns their folder. It gets what the yaml
        has under ``corpus``.
    argv : list of str
        The yaml file, run options and overrides.

    Returns
    -------
    PhoneBrain
        The Brain, trained and tested.
    """
    hparams, run_opts = start(argv)
    return train(hparams, run_opts, prepared(prepare, hparams))


if __name__ == "__main__":
    with clean_errors():
        run(prepare, sys.argv[1:])
