"""Read phones as CTC targets, and measure a recognizer's error rate."""

import logging
import pathlib
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_vq.dataio.dataset import read_dataset

logger = logging.getLogger(__name__)


def phone_names(item: dict[str, Any]) -> list[str]:
    """List the phones of an utterance in a manifest: ``phone_names`` if present
    (phones without times), else the names in ``phones``, [start, end, name].

    >>> phone_names({"phones": [[0.0, 0.1, "t"], [0.1, 0.3, "u"]]})
    ['t', 'u']
    """
    names = item.get("phone_names")
    return names or [name for _, _, name in item.get("phones", [])]


def read_split(
    hparams: dict, folder: pathlib.Path, split: str, token_rate: float
) -> DynamicItemDataset:
    """Read the usable utterances of a split: those of at most ``longest``
    seconds that have phones, but no more phones than tokens."""
    path = folder / f"{split}.json"
    data = read_dataset(folder, split).data
    total, ignored = len(data), hparams["not_phones"]
    if isinstance(ignored, str):
        ignored = [ignored]
    unknown = {*ignored}.difference(*map(phone_names, data.values()))
    if unknown:
        logger.warning("%s has no phones %s (--not_phones)", path, unknown)
    for name, item in list(data.items()):
        phones = phone_names(item)
        phones = [p for p in phones if p not in ignored]
        # CTC has no alignment with fewer frames than phones.
        frames = int(item["length"] * token_rate)
        if 0 < len(phones) <= frames and item["length"] <= hparams["longest"]:
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
            *(path, total - len(data), total, hparams["longest"]),
        )
    # A new data set, because the old one stores the ids and keys of its items.
    return DynamicItemDataset(data)


def add_labels(
    encoder: CTCTextEncoder, datasets: dict, save_folder: str | pathlib.Path
) -> None:
    """Number the phones of the training set, with 0 for the CTC blank, and add
    ``labels`` to the items of all sets."""
    encoder.load_or_create(
        pathlib.Path(save_folder) / "label_encoder.txt",
        from_iterables=[
            [item["phone_names"] for item in datasets["train"].data.values()]
        ],
        sequence_input=True,
        special_labels={"blank_label": 0, "unk_label": "<unk>"},
    )
    encoder.ignore_len()

    @sb.utils.data_pipeline.takes("phone_names")
    @sb.utils.data_pipeline.provides("labels")
    def label(names):
        return encoder.encode_sequence_torch(names)

    for dataset in datasets.values():
        dataset.add_dynamic_item(label)


class PhoneErrorsMixin:
    """Mixin for a Brain whose hparams have a ``label_encoder``. It computes the
    CTC loss and, in validation and test, the phone error rate (%). List it
    before ``StagesMixin`` in the bases."""

    def on_stage_start(self, stage, epoch=None):
        """Reset the error counts."""
        self.errors = ErrorRateStats()

    def ctc_loss(
        self, log_probs: torch.Tensor, lengths: torch.Tensor, batch, stage
    ) -> torch.Tensor:
        """Compute the CTC loss of log-probabilities [B, T, P]. In validation and
        test, count the errors of greedy decoding."""
        encoder = self.hparams.label_encoder
        blank = encoder.get_blank_index()
        if stage != sb.Stage.TRAIN:
            decoded = ctc_greedy_decode(log_probs, lengths, blank)
            self.errors.append(
                batch.id, encoder.decode_ndim(decoded), batch.phone_names
            )
        labels, label_lengths = batch.labels
        return sb.nnet.losses.ctc_loss(
            log_probs, labels, lengths, label_lengths, blank
        )

    def stage_metrics(self, stage):
        """Compute the phone error rate."""
        return {"PER": self.errors.summarize("error_rate")}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the stage; save a checkpoint or keep the test results."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST:
            summary = self.errors.summarize()
            self.results["per"] = self.results.pop("PER")
            self.results["phones"] = summary["num_scored_tokens"]

    def write_errors(self, path: str | pathlib.Path) -> None:
        """Write the alignments of the test."""
        with open(path, "w", encoding="utf-8") as file:
            self.errors.write_stats(file)
