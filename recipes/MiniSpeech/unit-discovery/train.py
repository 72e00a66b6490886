"""Recipe for discovering speech units with a vector-quantized autoencoder.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=my_recordings

To generate a synthetic corpus, add --make_minispeech. To train the codebook
differently, add --preset=vanilla, for example. Recipes of this task for other
corpora import this file.
"""

import logging
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import run_on_main

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.dataset import (
    TrainingReader,
    random_start,
    read_dataset,
)
from speechbrain_vq.dataio.manifests import (
    SPLITS,
    duration,
    manifest_path,
)
from speechbrain_vq.evaluation.phone_units import PhoneUnitCounts, pnmi
from speechbrain_vq.lobes.autoencoder import (
    normalize_utterances,
    utterance_moments,
)
from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.recipes.common.loggers import LoggerGroup, Sample
from speechbrain_vq.recipes.common.progress import in_words, seconds_per_step
from speechbrain_vq.recipes.common.runs import (
    AnnealingBrain,
    build_brain,
    fill_epoch,
    finish,
    fit_and_test,
    fit_features,
    prepared,
    start,
)
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import prepare
from speechbrain_vq.training.brain import run_length

logger = logging.getLogger(__name__)

# Minimum tokens per code: with fewer, the codebook memorizes the recordings.
MIN_TOKENS_PER_CODE = 20


class UnitBrain(AnnealingBrain):
    """Train an autoencoder of speech with a vector-quantized bottleneck.

    The decoder defines its target and error: ``errors`` returns the sum of the
    errors and their number, and ``metrics`` the mean error by its name.
    """

    # Output keys of the datasets
    items = ["id", "sig"]

    @property
    def least(self):
        """Name of the error, by which checkpoints are selected. The loss has
        terms of the quantizer, which grow with the latents."""
        return next(iter(self.modules.decoder.metrics(0.0)))

    def set_up(self, datasets):
        """Store the test phones, the training set, and the utterances to log."""
        self.phones = {
            name: item.get("phones", [])
            for name, item in datasets["test"].data.items()
        }
        self.train_set = datasets["train"]
        # Sorted by length: these are at the median and the third quartile.
        valid = datasets["valid"].data_ids
        self.sampled = {valid[len(valid) * n // 4] for n in (2, 3)}

    def on_fit_start(self):
        """Recover the latest checkpoint, and log the expected duration."""
        super().on_fit_start()
        _, total = run_length(self)
        steps = (total or 0) - self.optimizer_step
        # train_set is None for a stream, whose length is unknown.
        if self.distributed_launch or steps <= 0 or self.train_set is None:
            return
        # Validations take about a tenth more.
        seconds = 1.1 * steps * seconds_per_step(self, self.train_set)
        logger.info(
            "%s: %d codes, %d steps%s, about %s on this machine",
            amount(self.train_set),
            self.hparams.codebook_size,
            steps,
            f" after {self.optimizer_step}" if self.optimizer_step else "",
            in_words(seconds),
        )
        # Do not count the measurement as training time.
        self.bar.unpause()

    def compute_forward(self, batch, stage):
        """Compute features, tokens, and the decoder's predictions from tokens."""
        batch = batch.to(self.device)
        wavs, wav_lengths = batch.sig
        if stage == sb.Stage.TRAIN and hasattr(self.hparams, "wav_augment"):
            wavs, wav_lengths = self.hparams.wav_augment(wavs, wav_lengths)
            # Augmentation adds noise to the padding, too.
            wavs = wavs * frame_mask(wavs.unsqueeze(2), wav_lengths)
        features, lengths = self.modules.features(wavs, wav_lengths)
        speaker = self.speaker(batch, features, lengths)
        # Moments of the whole utterance, in training as in testing.
        moments = utterance_moments(features, lengths)
        if stage == sb.Stage.TRAIN:
            (features, lengths), (wavs, wav_lengths) = self.pieces(
                batch, features, lengths, wavs
            )
        normalizes = getattr(self.hparams.encoder, "utterance_norm", False)
        latents, token_lengths = self.modules.encoder(
            features, lengths, *([moments] if normalizes else [])
        )
        vq = self.modules.quantizer(latents, token_lengths)
        predictions = self.modules.decoder(
            vq.quantized, speaker, token_lengths, wavs, wav_lengths
        )
        window_error = 0.0
        if stage == sb.Stage.TRAIN and "window_predictor" in self.modules:
            window_error = self.modules.window_predictor(
                vq.quantized,
                normalize_utterances(features, lengths, moments),
                lengths,
            )
        return features, lengths, predictions, vq, window_error

    def pieces(self, batch, features, lengths, wavs):
        """Cut the same segment of each utterance from features and waveforms.
        Its start depends on the utterance's name and the epoch."""
        hop = self.hparams.hop_length
        rate = self.hparams.sample_rate / hop
        frames = torch.round(lengths * features.shape[1])
        width = min(round(self.hparams.segment * rate), features.shape[1])
        epoch = self.hparams.epoch_counter.current
        starts = [
            round(random_start(name, epoch, number, width))
            for name, number in zip(batch.id, frames.tolist(), strict=True)
        ]
        starts = torch.tensor(starts, device=frames.device)
        lengths = (frames - starts).clamp(max=width) / width
        return (
            (cut(features, starts, width), lengths),
            (cut(wavs, starts * hop, width * hop), lengths),
        )

    def speaker(self, batch, features, lengths):
        """Compute the speaker embeddings [B, S] for the decoder."""
        return self.modules.speaker(features, lengths)

    def compute_objectives(self, predictions, batch, stage):
        """Compute the decoder's mean error plus the quantizer's loss and, in
        training, the weighted error of the window predictor."""
        features, lengths, predictions, vq, window_error = predictions
        error, size = self.hparams.decoder.errors(
            predictions, features, lengths
        )
        if stage != sb.Stage.TRAIN:
            self.error_sum += float(error)
            self.error_size += float(size)
        if stage == sb.Stage.VALID:
            self.keep_samples(batch, features, lengths, predictions, vq)
        if stage == sb.Stage.TEST and not self.hparams.quantizer.bypass:
            self.count_units(batch, vq.indices)
        weight = getattr(self.hparams, "window_weight", None) or 0.0
        return error / size + vq.loss + weight * window_error

    def keep_samples(self, batch, features, lengths, predictions, vq):
        """Add the code counts of a batch, and store the utterances to log."""
        self.counts = self.counts + vq.metrics["counts"]
        decoder, extract = self.hparams.decoder, self.modules.features
        # A warm-up has no tokens to log; a waveform decoder has no log-mels.
        if self.hparams.quantizer.bypass or hasattr(decoder, "generate"):
            return

        def synthesize(mels):
            return extract.inverse(mels[None].to(self.device))[0].cpu()

        frames = torch.round(lengths * features.shape[1]).long().tolist()
        for row, name in enumerate(batch.id):
            if name in self.sampled:
                number = frames[row]
                # Tokens of the first codebook
                tokens = vq.indices[row].view(vq.indices.shape[1], -1)[:, 0]
                self.samples[name] = Sample(
                    features[row, :number].cpu(),
                    predictions[row, :number].cpu(),
                    tokens[: number // self.hparams.stride].cpu(),
                    synthesize,
                    self.hparams.sample_rate,
                )

    def count_units(self, batch, indices):
        """Add a batch to the tables of phones and units, one per codebook."""
        _, lengths = batch.sig
        seconds = lengths * batch.sig.data.shape[1] / self.hparams.sample_rate
        tokens = torch.round(seconds * self.hparams.token_rate).long()
        for name, units, number in zip(
            batch.id, indices.cpu(), tokens.tolist(), strict=True
        ):
            books = units.view(len(units), -1)[:number].T.tolist()
            for table, codes in zip(self.units, books, strict=True):
                table.add(codes, self.phones.get(name, []))

    def on_stage_start(self, stage, epoch=None):
        """Reset the sums and tables."""
        self.error_sum = self.error_size = 0.0
        self.samples, self.counts = {}, 0
        self.units = [
            PhoneUnitCounts(self.hparams.codebook_size, self.hparams.token_rate)
            for _ in range(self.hparams.quantizer.num_codebooks)
        ]

    def stage_metrics(self, stage):
        """Compute the mean error and, in a test with phones, PNMI by codebook."""
        error = self.error_sum / self.error_size
        metrics = self.hparams.decoder.metrics(error)
        for book, table in enumerate(self.units):
            end = f"_codebook_{book + 1}" if len(self.units) > 1 else ""
            counts = table.counts()
            if len(counts):
                metrics[f"pnmi{end}"] = pnmi(counts)
        return metrics

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log metrics and media; save a checkpoint or keep the test results."""
        super().on_stage_end(stage, stage_loss, epoch)
        train_logger = self.hparams.train_logger
        if stage == sb.Stage.VALID and isinstance(train_logger, LoggerGroup):
            train_logger.log_media(
                self.optimizer_step, self.samples, self.counts
            )


def cut(tensor, starts, width):
    """Cut ``width`` frames from each row of [B, T, ...], from ``starts`` [B]."""
    rows = torch.arange(len(tensor), device=starts.device).unsqueeze(1)
    offsets = torch.arange(width, device=starts.device)
    return tensor[rows, starts.unsqueeze(1) + offsets]


def amount(dataset: DynamicItemDataset) -> str:
    """Describe the amount of speech in a training set."""
    items = [dataset.data[name] for name in dataset.data_ids]
    # A small data set repeats its files (see fill_epoch).
    files = {item["wav"]: item["length"] for item in items}
    speakers = {item.get("spk_id") for item in items} - {None, ""}
    text = duration(sum(files.values()))
    if speakers:
        text += f" of {len(speakers)} speaker{'s' * (len(speakers) > 1)}"
    return text + " to train on"


def check_amount(hparams: dict, dataset: DynamicItemDataset) -> None:
    """Warn if there is too little speech to fill the codebook."""
    size = hparams["codebook_size"]
    seconds = sum(dataset.data[name]["length"] for name in dataset.data_ids)
    tokens = round(seconds * hparams["token_rate"])
    if tokens < MIN_TOKENS_PER_CODE * size:
        fitting = 2 ** max(int(math.log2(tokens / MIN_TOKENS_PER_CODE + 1)), 1)
        logger.warning(
            "Too little speech for %d codes: %.1f s to train on are %d tokens, "
            "%.1f per code; at least %d are recommended. Add recordings, or "
            "pass --codebook_size=%d.",
            *(
                size,
                seconds,
                tokens,
                tokens / size,
                MIN_TOKENS_PER_CODE,
                fitting,
            ),
        )


def dataio_prep(hparams: dict, folder: pathlib.Path, items: list[str]) -> dict:
    """Build the datasets of a folder of manifests."""
    longest = hparams["longest"]
    read = TrainingReader(hparams["sample_rate"])

    @sb.utils.data_pipeline.takes("id", "wav", "length")
    @sb.utils.data_pipeline.provides("sig")
    def anywhere(name, path, seconds):
        epoch = hparams["epoch_counter"].current
        start = random_start(name, epoch, seconds, longest)
        return read(path, seconds, start, longest)

    @sb.utils.data_pipeline.takes("wav", "length")
    @sb.utils.data_pipeline.provides("sig")
    def beginning(path, seconds):
        return read(path, seconds, duration=longest)

    # Seconds of two frames
    shortest = 2 * hparams["hop_length"] / hparams["sample_rate"]
    datasets = {}
    for split in SPLITS:
        training = split == "train"
        dataset = read_dataset(folder, split)
        dataset.add_dynamic_item(anywhere if training else beginning)
        dataset.set_output_keys(items)
        datasets[split] = dataset.filtered_sorted(
            sort_key=None if training else "length",
            key_min_value={"length": shortest},
            select_n=hparams.get("valid_size") if split == "valid" else None,
        )
        if not len(datasets[split]):
            raise ValueError(
                f"{manifest_path(folder, split)}: all recordings are shorter "
                f"than {shortest:g} s."
            )
    return datasets


def train(
    hparams: dict,
    run_opts: Any,
    folder: pathlib.Path,
    brain_class: type[UnitBrain] = UnitBrain,
    stream: LoopedLoader | None = None,
) -> UnitBrain:
    """Train and test on a folder of manifests, and return the Brain. With a
    stream, manifests are only for feature statistics, validation and test."""
    datasets = dataio_prep(hparams, folder, brain_class.items)
    features = hparams["features"]
    # data_ids lacks utterances that are too short.
    used, items = datasets["train"].data_ids, datasets["train"].data
    fit_features(features, {k: items[k] for k in used}, hparams["longest"])
    if stream is None:
        check_amount(hparams, datasets["train"])
        steps = hparams.get("epoch_steps", 1)
        fill_epoch(datasets["train"], hparams["batch_size"], steps)
    modules = dict(hparams["modules"])
    if hparams.get("window_weight"):
        # Not in hparams["modules"], whose modules are exported.
        modules["window_predictor"] = hparams["window_predictor"]
    brain = build_brain(brain_class, hparams, run_opts, modules)
    brain.set_up(datasets)
    if stream is not None:
        datasets["train"], brain.train_set = stream, None
        brain.checkpointer.add_recoverable("stream", stream)
    fit_and_test(brain, datasets)
    run_on_main(finish, args=[hparams, brain])
    return brain


def run(
    prepare: Callable[..., pathlib.Path],
    argv: list[str],
    brain_class: type[UnitBrain] = UnitBrain,
    open_stream: Callable[[dict], LoopedLoader] | None = None,
) -> UnitBrain:
    """Run the recipe of a corpus from its command line, and return the Brain.

    ``prepare`` writes the manifests from the yaml's ``corpus``, and returns
    their folder. ``open_stream`` returns a loader to train on instead of the
    training manifest, if the hyperparameter ``stream`` is true."""
    hparams, run_opts = start(argv)
    stream = open_stream(hparams) if hparams.get("stream") else None
    folder = prepared(prepare, hparams)
    return train(hparams, run_opts, folder, brain_class, stream)


if __name__ == "__main__":
    with clean_errors():
        run(prepare, sys.argv[1:])
