"""Recipe for training SpeechBrain's HiFi-GAN on the units of a frozen tokenizer.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=data

The tokenizer is a bundled one, or --tokenizer=MODEL: a folder written by
export_pretrained, or a Hub id. --make_minispeech generates a synthetic corpus in
the data folder.
"""

import logging
import pathlib
import sys
from importlib import import_module

import soundfile
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import if_main_process, run_on_main
from tqdm import tqdm

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.dataset import (
    TrainingReader,
    random_start,
    read_dataset,
)
from speechbrain_vq.inference import VQTokenizer
from speechbrain_vq.inference.vocoders import (
    UnitVocoder,
    samples_per_frame,
    to_ids,
    unit_settings,
)
from speechbrain_vq.recipes.common.runs import (
    StagesMixin,
    build_brain,
    fit_and_test,
    prepared,
    start,
    write_results,
)
from speechbrain_vq.recipes.common.vocoders import export_vocoder
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import prepare
from speechbrain_vq.training.resume import ResumeMixin

logger = logging.getLogger(__name__)
units = import_module("speechbrain_vq.recipes.MiniSpeech.unit-discovery.train")
# Keys in an exported vocoder's yaml that describe its tokenizer.
KEYS = "sample_rate token_rate codebook_size num_codebooks speaker_dim".split()


class VocoderBrain(StagesMixin, ResumeMixin, sb.Brain):
    """Train a speech generator against a discriminator."""

    objective = least = "mel_l1"

    def init_optimizers(self):
        """Build an optimizer and a scheduler each for generator and
        discriminator."""
        self.optimizers_dict, self.schedulers = {}, {}
        for name in ("generator", "discriminator"):
            optimizer = self.opt_class(self.modules[name].parameters())
            scheduler = self.hparams.scheduler(optimizer)
            self.optimizers_dict[name] = optimizer
            self.schedulers[name] = scheduler
            self.checkpointer.add_recoverable(f"optimizer_{name}", optimizer)
            self.checkpointer.add_recoverable(f"scheduler_{name}", scheduler)

    def compute_forward(self, batch, stage):
        """Generate waveforms [B, 1, samples] from the tokens."""
        ids, _ = batch.ids
        fake, _ = self.modules.generator(ids, spk=batch.speaker.data)
        return fake

    def compute_objectives(self, predictions, batch, stage):
        """Compute the L1 error of log-mel spectrograms."""
        return self.hparams.spectrogram_loss(predictions, batch.sig.data)

    def fit_batch(self, batch):
        """Take a step of the discriminator, then one of the generator."""
        batch = batch.to(self.device)
        real = batch.sig.data
        fake = self.compute_forward(batch, sb.Stage.TRAIN)
        adversarial = ()
        if self.optimizer_step >= self.hparams.adversarial_start:
            self.fit_discriminator(real, fake.detach())
            scores, maps = self.modules.discriminator(fake)
            with torch.no_grad():
                _, real_maps = self.modules.discriminator(real)
            adversarial = (scores, maps, real_maps)
        losses = self.hparams.generator_loss(
            sb.Stage.TRAIN, fake, real, *adversarial
        )
        self.step_of("generator", losses["G_loss"])
        self.optimizer_step += 1
        return losses["G_l1_spec_loss"].detach().cpu()

    def fit_discriminator(self, real, fake):
        """Take a step of the discriminator."""
        scores = [self.modules.discriminator(wavs)[0] for wavs in (fake, real)]
        losses = self.hparams.discriminator_loss(*scores)
        self.step_of("discriminator", losses["D_loss"])

    def step_of(self, name, loss):
        """Take a step of one optimizer."""
        # Clear all gradients: the generator's loss reaches the discriminator.
        self.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers_dict[name].step()

    @torch.no_grad()
    def evaluate_batch(self, batch, stage):
        """Evaluate whole utterances, one by one."""
        batch = batch.to(self.device)
        fake = self.vocoder(batch.tokens.data, speaker=batch.speaker.data)
        fake = fake.unsqueeze(1)
        if stage == sb.Stage.TEST:
            self.test(batch, fake)
        return self.compute_objectives(fake, batch, stage).cpu()

    def test(self, batch, fake):
        """Evaluate Griffin-Lim, and write the first utterances to files."""
        versions = {"speech": batch.sig.data, "vocoder": fake}
        # A WaveNet decoder has no log-mels, and sampling it would take days.
        if not self.tokenizer.decodes_to_samples:
            rebuilt = self.tokenizer.decode_batch(
                self.tokenizer.fold(batch.tokens.data),
                speaker=batch.speaker.data,
            ).unsqueeze(1)
            versions["griffin_lim"] = rebuilt
            self.griffin_lim.append(
                float(self.compute_objectives(rebuilt, batch, sb.Stage.TEST))
            )
        self.tested += 1
        if self.tested <= self.hparams.samples and if_main_process():
            self.write_samples(batch, versions)

    def write_samples(self, batch, versions):
        """Write each version of an utterance to a wav file."""
        folder = pathlib.Path(self.hparams.output_folder) / "samples"
        folder.mkdir(exist_ok=True)
        for kind, wavs in versions.items():
            name = f"{batch.id[0].replace('/', '_')}.{kind}.wav"
            with atomic_write(folder / name) as partial:
                soundfile.write(
                    partial,
                    wavs.flatten().clamp(-1, 1).cpu().numpy(),
                    self.hparams.sample_rate,
                )

    def on_stage_start(self, stage, epoch=None):
        """Reset the errors of Griffin-Lim and the number of test utterances."""
        self.griffin_lim, self.tested = [], 0

    def stage_metrics(self, stage):
        """Compute the mean error of Griffin-Lim in the test."""
        if not self.griffin_lim:
            return {}
        mean = sum(self.griffin_lim) / len(self.griffin_lim)
        return {"griffin_lim_mel_l1": mean}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the stage; save a checkpoint or keep the test results."""
        if stage == sb.Stage.VALID:
            for scheduler in self.schedulers.values():
                scheduler.step()
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST:
            self.results["utterances"] = self.tested


def check_tokenizer(hparams, tokenizer):
    """Raise ValueError unless the yaml's sizes match its tokenizer."""
    sizes = unit_settings(tokenizer)
    wrong = {k: sizes[k] for k in KEYS if hparams[k] != sizes[k]}
    if wrong:
        flags = " ".join(f"--{key}={value}" for key, value in wrong.items())
        raise ValueError(f"The tokenizer {tokenizer.source} requires {flags}")
    samples = tokenizer.sample_rate / tokenizer.token_rate
    product = samples_per_frame(hparams["generator"])
    if product != samples:
        raise ValueError(
            f"A token of {tokenizer.source} covers {samples:g} samples, "
            f"but the product of --upsample_factors is {product}."
        )


@torch.no_grad()
def tokenize(hparams, tokenizer, items, split):
    """Add tokens and speaker embeddings to utterances."""
    read = TrainingReader(tokenizer.sample_rate)
    seconds = None if split == "train" else hparams["longest"]
    for item in tqdm(items.values(), f"{split} set", disable=None):
        wav = read(item["wav"], item["length"], duration=seconds)
        if len(wav) * tokenizer.token_rate < tokenizer.sample_rate:
            wav = torch.nn.functional.pad(wav, (0, tokenizer.sample_rate))
        wavs = wav.unsqueeze(0)
        # sig_to_tokens keeps the codebook dimension, [T, C].
        item["tokens"] = tokenizer.sig_to_tokens(wavs)[0].cpu()
        item["speaker"] = tokenizer.speaker_batch(wavs)[0].cpu()


def dataio_prep(hparams, folder, tokenizer):
    """Build the datasets of a folder of manifests."""
    rate = hparams["sample_rate"]
    hop, size = rate / hparams["token_rate"], hparams["segment_tokens"]
    read = TrainingReader(rate)

    def samples(path, length, first, number):
        """Read the samples [1, samples] of ``number`` tokens from ``first``."""
        seconds = [n * hop / rate for n in (first, number)]
        wav = read(path, length, *seconds)
        # Resampled files may lack a sample at the end.
        missing = round(number * hop) - len(wav)
        return torch.nn.functional.pad(wav, (0, missing)).unsqueeze(0)

    @sb.utils.data_pipeline.takes("id", "wav", "length", "tokens")
    @sb.utils.data_pipeline.provides("sig", "ids")
    def segment(name, path, length, tokens):
        epoch = hparams["epoch_counter"].current
        first = int(random_start(name, epoch, len(tokens) + 1, size))
        first = min(first, len(tokens) - size)
        yield samples(path, length, first, size)
        yield to_ids(tokens[first : first + size], hparams["codebook_size"])

    @sb.utils.data_pipeline.takes("wav", "length", "tokens")
    @sb.utils.data_pipeline.provides("sig")
    def whole(path, length, tokens):
        return samples(path, length, 0, len(tokens))

    datasets = {}
    for split in ("train", "valid", "test"):
        items = read_dataset(folder, split).data
        if split == "valid":
            step = -(-len(items) // hparams["valid_utterances"])
            items = {name: items[name] for name in sorted(items)[::step]}
        tokenize(hparams, tokenizer, items, split)
        if split == "train":
            items = {
                f"{name} {number}": item
                for name, item in items.items()
                for number in range(hparams["segments"])
                if len(item["tokens"]) >= size
            }
        if not items:
            raise ValueError(
                f"No utterance of {split} has {size} tokens: use fewer "
                "--segment_tokens."
            )
        dataset = DynamicItemDataset(items)
        dataset.add_dynamic_item(segment if split == "train" else whole)
        keys = ["ids"] if split == "train" else ["tokens"]
        dataset.set_output_keys(["id", "sig", "speaker", *keys])
        datasets[split] = dataset
    return datasets


def finish(hparams, brain):
    """Export the vocoder, and write the test results."""
    folder = pathlib.Path(hparams["output_folder"]) / "vocoder"
    generator = brain.vocoder.generator
    keys = [*KEYS, "tokenizer"]
    export_vocoder(folder, "generator", generator, brain.tokenizer, keys)
    logger.info(
        'VQTokenizer.from_hparams("%s", vocoder="%s") uses it',
        *(hparams["tokenizer"], folder),
    )
    settings = {key: hparams[key] for key in ("tokenizer", "seed")}
    settings["step"] = brain.optimizer_step
    write_results(hparams["output_folder"], settings | brain.results)


def train(hparams, run_opts, folder):
    """Train and test on a folder of manifests, and return the Brain."""
    brain = build_brain(VocoderBrain, hparams, run_opts)
    brain.tokenizer = VQTokenizer.from_hparams(
        hparams["tokenizer"], run_opts={"device": str(brain.device)}
    )
    # decode_batch is the Griffin-Lim baseline, even if the yaml has a vocoder.
    brain.tokenizer.use_vocoder(None)
    check_tokenizer(hparams, brain.tokenizer)
    brain.vocoder = UnitVocoder(
        hparams["generator"], unit_settings(brain.tokenizer)
    )
    datasets = dataio_prep(hparams, folder, brain.tokenizer)
    logger.info("%d segments in an epoch", len(datasets["train"]))
    fit_and_test(brain, datasets, valid_batch_size=1)
    run_on_main(finish, args=[hparams, brain])
    return brain


if __name__ == "__main__":
    with clean_errors():
        hparams, run_opts = start(sys.argv[1:])
        train(hparams, run_opts, prepared(prepare, hparams))
