"""Recipe for discovering speech units with a vector-quantized autoencoder.

To run this recipe:
> python train.py hparams/train.yaml --data_folder data/minispeech

Where the folder does not exist, MiniSpeech is made there. To compare with
another way of training the codebook, add for example --arm=vanilla.

Authors
 * speechbrain_vq authors 2026
"""

import json
import logging
import pathlib
import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataio import load_data_csv, load_data_json
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import ddp_init_group, run_on_main

from speechbrain_vq.dataio.audio import random_start, read_audio, usable
from speechbrain_vq.evaluation.units import PhoneUnitCounts, pnmi
from speechbrain_vq.hub import ExportRefused, export_pretrained
from speechbrain_vq.hub.corpus import note_corpus
from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.presets import parse_arguments
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import (
    data_root,
    prepare,
)
from speechbrain_vq.training import VQBrain

logger = logging.getLogger(__name__)


class UnitBrain(VQBrain):
    """Learns to say features again through a quantizer."""

    def compute_forward(self, batch, stage):
        """Features, and the features made of their units."""
        batch = batch.to(self.device)
        features, lengths = self.modules.features(*batch.sig)
        latents, token_lengths = self.modules.encoder(features, lengths)
        vq = self.modules.quantizer(latents, token_lengths)
        speaker = self.modules.speaker(features, lengths)
        decoded = self.modules.decoder(vq.quantized, speaker, token_lengths)
        return features, lengths, decoded[:, : features.shape[1]], vq

    def compute_objectives(self, predictions, batch, stage):
        """Mean absolute error over valid frames, and the quantizer's loss."""
        features, lengths, decoded, vq = predictions
        mask = frame_mask(features, lengths).unsqueeze(-1)
        error = ((decoded - features).abs() * mask).sum()
        size = mask.sum() * features.shape[-1]
        if stage != sb.Stage.TRAIN:
            self.error_sum += float(error)
            self.error_size += float(size)
        if stage == sb.Stage.TEST and not self.hparams.quantizer.bypass:
            self.count_units(batch, vq.indices)
        return error / size + vq.loss

    def count_units(self, batch, indices):
        """Adds a batch to the table of phones and units."""
        _, lengths = batch.sig
        seconds = lengths * batch.sig.data.shape[1] / self.hparams.sample_rate
        tokens = torch.round(seconds * self.hparams.token_rate).long()
        for name, units, number in zip(
            batch.id, indices.tolist(), tokens.tolist(), strict=True
        ):
            # Not every corpus has phones.
            self.units.add(units[:number], self.phones.get(name, []))

    def on_stage_start(self, stage, epoch=None):
        """Empties the sums."""
        self.error_sum = self.error_size = 0.0
        self.units = PhoneUnitCounts(
            self.hparams.codebook_size, self.hparams.token_rate
        )

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, saves, and writes the results of a test."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        error = self.error_sum / self.error_size
        stats = {"loss": stage_loss, "reconstruction_error": error}
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch, "step": self.optimizer_step},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta=stats, importance_keys=[], num_to_keep=1
            )
            return
        counts = self.units.counts()
        if len(counts):
            stats["pnmi"] = pnmi(counts)
        self.hparams.train_logger.log_stats(
            {"step": self.optimizer_step}, test_stats=stats
        )
        self.results = {"steps": self.optimizer_step, **stats}


def read_manifest(folder, split):
    """The items of a json manifest, or of a csv where there is no json."""
    root = {"data_root": data_root(folder)}
    path = folder / f"{split}.json"
    if path.exists():
        return DynamicItemDataset(load_data_json(str(path), root))
    data = load_data_csv(str(folder / f"{split}.csv"), root)
    for item in data.values():
        item["length"] = item.pop("duration")
    return DynamicItemDataset(data)


def dataio_prep(hparams, folder):
    """The three datasets of a folder of manifests."""

    @sb.utils.data_pipeline.takes("id", "wav", "length")
    @sb.utils.data_pipeline.provides("sig")
    def segment(name, path, seconds):
        piece = hparams["segment"]
        epoch = hparams["epoch_counter"].current
        start = random_start(name, epoch, seconds, piece)
        return read_audio(path, hparams["sample_rate"], start, piece)

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def whole(path):
        return read_audio(
            path, hparams["sample_rate"], duration=hparams["longest"]
        )

    datasets = {}
    for split in ("train", "valid", "test"):
        training = split == "train"
        dataset = read_manifest(folder, split)
        dataset.add_dynamic_item(segment if training else whole)
        dataset.set_output_keys(["id", "sig"])
        datasets[split] = usable(dataset).filtered_sorted(
            sort_key=None if training else "length",
            # Two frames.
            key_min_value={
                "length": 2 * hparams["hop_length"] / hparams["sample_rate"]
            },
        )
    return datasets


def fit_features(features, dataset, longest, number=200):
    """Finds the normalization of the features on whole utterances."""
    sample = sorted(dataset.data)[:: max(len(dataset.data) // number, 1)]
    features.fit(
        read_audio(
            dataset.data[name]["wav"], features.sample_rate, duration=longest
        ).unsqueeze(0)
        for name in sample
    )


def finish(brain, hparams):
    """Exports the model and writes the results of the test, which are last:
    where they are, the run is complete."""
    folder = pathlib.Path(hparams["output_folder"])
    results = {"arm": hparams["arm"], "seed": hparams["seed"], **brain.results}
    results.update(brain.vq_stats["test"])
    note_corpus(hparams, folder)
    try:
        model = export_pretrained(folder, folder / "model", results=results)
        logger.info('VQTokenizer.from_hparams("%s") loads the model', model)
    except ExportRefused as refusal:
        command = f"speechbrain-vq export --force {folder} {folder / 'model'}"
        logger.warning("No model was exported. %s (%s)", refusal, command)
    path = folder / "results.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    logger.info("The results are in %s", path)


if __name__ == "__main__":
    hparams_file, run_opts, overrides = parse_arguments(sys.argv[1:])
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    ddp_init_group(run_opts)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    corpus = {
        "data_folder": hparams["data_folder"],
        "save_folder": hparams["manifest_folder"],
        "minutes": hparams["minutes"],
        "languages": hparams["languages"],
    }
    run_on_main(prepare, kwargs=corpus)
    folder = prepare(**corpus)  # Finds it done
    datasets = dataio_prep(hparams, folder)
    fit_features(hparams["features"], datasets["train"], hparams["longest"])
    brain = UnitBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.phones = {
        name: item.get("phones", [])
        for name, item in datasets["test"].data.items()
    }
    loader = {"num_workers": hparams["num_workers"]}
    brain.fit(
        hparams["epoch_counter"],
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs={
            "batch_size": hparams["batch_size"],
            "shuffle": True,
            **loader,
        },
        valid_loader_kwargs={
            "batch_size": hparams["valid_batch_size"],
            **loader,
        },
    )
    brain.evaluate(
        datasets["test"],
        test_loader_kwargs={
            "batch_size": hparams["valid_batch_size"],
            **loader,
        },
    )
    run_on_main(finish, kwargs={"brain": brain, "hparams": hparams})
