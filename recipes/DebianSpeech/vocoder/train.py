"""Recipe for training a source-filter vocoder for the log-mels that a tokenizer
decodes, on recorded speech.

To run this recipe (README.md lists the packages):
> python train.py hparams/train.yaml --data_folder=PACKAGES

The tokenizer is frozen: the bundled codec, or --tokenizer=MODEL.
"""

import functools
import logging
import pathlib
import random
import sys

import numpy as np
import parselmouth
import speechbrain as sb
import torch
from speechbrain.utils.distributed import run_on_main

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.dataset import (
    TrainingReader,
    random_start,
    read_dataset,
)
from speechbrain_vq.dataio.manifests import SPLITS
from speechbrain_vq.inference import VQTokenizer
from speechbrain_vq.inference.vocoder_loading import load_vocoder
from speechbrain_vq.inference.vocoders import MelVocoder
from speechbrain_vq.lobes.vocoder import f0, pitch_targets
from speechbrain_vq.recipes.common.runs import (
    StagesMixin,
    build_brain,
    fit_and_test,
    prepared,
    start,
    write_results,
)
from speechbrain_vq.recipes.common.vocoders import export_vocoder
from speechbrain_vq.recipes.DebianSpeech.debianspeech_prepare import prepare
from speechbrain_vq.training.resume import ResumeMixin

logger = logging.getLogger(__name__)


class VocoderBrain(StagesMixin, ResumeMixin, sb.Brain):
    """Train a vocoder on log-mels of recordings, or decoded from tokens."""

    def compute_forward(self, batch, stage):
        """Compute the features, the vocoder's controls, and waveforms [B, samples]
        with the true F0."""
        batch = batch.to(self.device)
        features = self.features(batch.sig.data, stage)
        mels = self.tokenizer.mods.features.denormalize(features)
        controls = self.modules.vocoder.controls(mels)
        # Voicing is trained by its own loss, not by the spectra.
        detached = controls._replace(voicing=controls.voicing.detach())
        wavs = self.modules.vocoder.synthesize(detached, batch.contour.data)
        return features, controls, wavs

    @torch.no_grad()
    def features(self, wavs, stage):
        """Compute normalized log-mels decoded from tokens. In training, decode
        a random number of first codebooks, and use recordings in some rows."""
        ones = torch.ones(len(wavs), device=self.device)
        features, _ = self.tokenizer.mods.features(wavs, ones)
        number, books = 0, self.tokenizer.num_codebooks
        if stage == sb.Stage.TRAIN:
            number = round(len(wavs) * (1 - self.hparams.decoded_share))
            books = int(torch.randint(books, ())) + 1
        if number < len(wavs):
            decoded = decoded_features(self.tokenizer, wavs[number:], books)
            features = torch.cat([features[:number], decoded])
        return features

    def compute_objectives(self, predictions, batch, stage):
        """Compute the loss on spectra, pitch and voicing."""
        features, controls, wavs = predictions
        f0s, target = batch.f0.data, batch.sig.data
        spectral = spectral_error(wavs, target, self.hparams.resolutions)
        if stage != sb.Stage.TRAIN:
            self.measure(controls, f0s, spectral)
        if stage == sb.Stage.TEST:
            self.compare(features, target)
        voiced = f0s > 0
        loss = spectral + self.source_loss(controls, f0s, voiced)
        if stage == sb.Stage.TRAIN:
            contour = batch.contour.data
            loss = loss + self.shifted_loss(controls, contour, voiced)
        return loss

    def source_loss(self, controls, f0s, voiced):
        """Compute the weighted cross-entropies of pitch and of voicing."""
        voicing = torch.nn.functional.binary_cross_entropy_with_logits(
            controls.voicing, voiced.float()
        )
        return (
            self.hparams.pitch_weight * pitch_loss(controls.pitch, f0s, voiced)
            + self.hparams.voicing_weight * voicing
        )

    def shifted_loss(self, controls, contour, voiced):
        """Compute the loss on pitch and voicing for the same speech synthesized
        at another F0. Both then depend neither on the training voices nor on
        how well the codec preserves their pitch."""
        vocoder = self.modules.vocoder
        mean = contour.log().mean(1, keepdim=True).exp()
        low, high = self.hparams.pitches
        target = low * (high / low) ** torch.rand_like(mean)
        shifted = (contour * target / mean).clamp(50.0, 500.0)
        with torch.no_grad():
            wavs = vocoder.synthesize(controls, shifted, match=False)
            features = self.features(wavs, sb.Stage.TRAIN)
            mels = self.tokenizer.mods.features.denormalize(features)
        return self.source_loss(vocoder.controls(mels), shifted, voiced)

    def measure(self, controls, f0s, spectral):
        """Collect the errors of a batch."""
        voiced = f0s > 0
        cents = 1200 * torch.log2(f0(controls.pitch)[voiced] / f0s[voiced])
        wrong = (controls.voicing > 0) != voiced
        self.errors["spectral_error"].append(float(spectral))
        # Per frame, so that all frames have the same weight in the means.
        self.errors["f0_error_cents"].extend(cents.abs().tolist())
        self.errors["voicing_error"].extend(wrong.flatten().float().tolist())

    def compare(self, features, wavs):
        """Evaluate the vocoder with its own F0, and Griffin-Lim, on the
        features of a batch."""
        extract = self.tokenizer.mods.features
        outputs = {
            "as_used": self.modules.vocoder(extract.denormalize(features)),
            "griffin_lim": extract.inverse(features),
        }
        for name, output in outputs.items():
            error = spectral_error(output, wavs, self.hparams.resolutions)
            self.errors[f"{name}_spectral_error"].append(float(error))

    def on_fit_batch_start(self, batch, should_step):
        """Set the learning rate of the next step."""
        self.hparams.lr_schedule(self.optimizer, self.optimizer_step + 1)

    def on_stage_start(self, stage, epoch=None):
        """Reset the errors."""
        names = ["spectral_error", "f0_error_cents", "voicing_error"]
        if stage == sb.Stage.TEST:
            names += ["as_used_spectral_error", "griffin_lim_spectral_error"]
        self.errors = {name: [] for name in names}

    def stage_metrics(self, stage):
        """Compute the mean errors."""
        return {k: float(np.mean(v)) for k, v in self.errors.items() if v}


@torch.no_grad()
def decoded_features(tokenizer, wavs, number):
    """Compute the features [B, T, K] that a tokenizer decodes from the tokens
    of its first codebooks."""
    tokens, _ = tokenizer.encode_batch(wavs)
    tokens = tokens if tokenizer.is_folded else tokens[..., :number]
    vectors = tokenizer.mods.quantizer.decode(tokens)
    return tokenizer.mods.decoder(vectors, tokenizer.speaker_batch(wavs), None)


def pitch_loss(logits, f0s, voiced):
    """Compute the mean cross-entropy of pitch classes [B, T, CLASSES] over
    voiced frames, or 0 if there are none."""
    losses = -(pitch_targets(f0s) * logits.log_softmax(-1)).sum(-1)[voiced]
    return losses.sum() / voiced.sum().clamp(min=1)


def spectral_error(wavs, target, resolutions):
    """Compute the L1 error of log-magnitudes plus spectral convergence (arXiv
    1910.11480), relative to the target's level and averaged over resolutions:
    (transform, hop, window) in samples."""
    level = target.square().mean(1, keepdim=True).sqrt().clamp(min=1e-3)
    errors = []
    for n_fft, hop, size in resolutions:
        window = torch.hann_window(size, device=target.device)
        ours, theirs = (
            torch.stft(
                signal / level, n_fft, hop, size, window, return_complex=True
            )
            .abs()
            .clamp(min=1e-5)
            for signal in (wavs, target)
        )
        errors.append((ours.log() - theirs.log()).abs().mean())
        errors[-1] = errors[-1] + (ours - theirs).norm() / theirs.norm()
    return torch.stack(errors).mean()


def track_f0(wav, sample_rate, hop_length):
    """Track F0 [T] in Hz at the center of each hop with Praat's autocorrelation
    method; 0 marks unvoiced frames."""
    sound = parselmouth.Sound(wav.double().numpy(), sample_rate)
    step = hop_length / sample_rate
    track = sound.to_pitch_ac(step, pitch_floor=60.0, pitch_ceiling=500.0)
    middles = (np.arange(len(wav) // hop_length) + 0.5) * step
    values = track.selected_array["frequency"]
    frames = np.rint((middles - track.xs()[0]) / step).astype(int)
    return torch.from_numpy(values[frames.clip(0, len(values) - 1)]).float()


def filled(track):
    """Interpolate the logarithm of F0 [T] over unvoiced frames."""
    voiced = np.flatnonzero(track)
    if not len(voiced):
        return torch.full_like(track, 150.0)
    logs = np.log(track.numpy()[voiced])
    contour = np.exp(np.interp(np.arange(len(track)), voiced, logs))
    return torch.from_numpy(contour).to(track)


def dataio_prep(hparams, folder):
    """Build the datasets of a folder of manifests. Items are segments of equal
    length; in training, their speed and start are redrawn in each epoch."""
    rate, hop = hparams["sample_rate"], hparams["hop_length"]
    samples = round(hparams["segment"] * rate / hop) * hop

    @functools.cache
    def reader(sample_rate):
        return TrainingReader(sample_rate)

    def piece(path, seconds, start, read_rate):
        """Read a segment, its F0, and its F0 without gaps. Short utterances are
        repeated. A read rate below the sampling rate speeds up and raises the
        voice."""
        read = reader(read_rate)
        wav = read(path, seconds, start, samples / read_rate)
        wav = wav.repeat(-(-samples // max(len(wav), 1)))[:samples]
        track = track_f0(wav, rate, hop)
        return wav, track, filled(track)

    @sb.utils.data_pipeline.takes("id", "wav", "length")
    @sb.utils.data_pipeline.provides("sig", "f0", "contour")
    def anywhere(name, path, seconds):
        epoch = hparams["epoch_counter"].current
        low, high = hparams["speeds"]
        position = random.Random(f"{name} {epoch}").random()
        speed = low * (high / low) ** position
        # Whole kHz keep the resampling filter short.
        read_rate = 1000 * round(rate / speed / 1000)
        start = random_start(name, epoch, seconds, samples / read_rate)
        yield from piece(path, seconds, start, read_rate)

    @sb.utils.data_pipeline.takes("wav", "length")
    @sb.utils.data_pipeline.provides("sig", "f0", "contour")
    def beginning(path, seconds):
        yield from piece(path, seconds, 0.0, rate)

    datasets = {}
    for split in SPLITS:
        dataset = read_dataset(folder, split)
        dataset.add_dynamic_item(anywhere if split == "train" else beginning)
        dataset.set_output_keys(["id", "sig", "f0", "contour"])
        datasets[split] = dataset.filtered_sorted(
            key_min_value={"length": hparams["shortest"]}
        )
    return datasets


def finish(hparams, brain):
    """Export the vocoder to ``model`` in the run folder, and write the results."""
    run = pathlib.Path(hparams["output_folder"])
    export_vocoder(
        run / "model", "vocoder", hparams["vocoder"], brain.tokenizer
    )
    settings = {key: hparams[key] for key in ("tokenizer", "seed")}
    settings["step"] = brain.optimizer_step
    write_results(run, settings | brain.results)
    logger.info(
        "Hear it: speechbrain-vq reconstruct RECORDING --model=%s "
        "--vocoder=%s --out=FOLDER",
        hparams["tokenizer"],
        run / "model",
    )


def start_from(vocoder, source):
    """Load the weights of a pretrained vocoder, from a folder or a Hub id."""
    pretrained = load_vocoder(source).generator
    try:
        vocoder.load_state_dict(pretrained.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"--pretrained={source} has other settings: --channels, "
            "--num_layers and the log-mel settings must match it."
        ) from error


def train(hparams, run_opts, folder):
    """Train and test on a folder of manifests, and return the Brain."""
    brain = build_brain(VocoderBrain, hparams, run_opts)
    brain.tokenizer = VQTokenizer.from_hparams(
        hparams["tokenizer"], run_opts={"device": str(brain.device)}
    )
    if hparams["pretrained"]:
        start_from(hparams["vocoder"], hparams["pretrained"])
    MelVocoder(hparams["vocoder"]).check(brain.tokenizer)
    size = hparams["batch_size"]
    fit_and_test(brain, dataio_prep(hparams, folder), valid_batch_size=size)
    run_on_main(finish, args=[hparams, brain])
    return brain


if __name__ == "__main__":
    with clean_errors():
        hparams, run_opts = start(sys.argv[1:])
        train(hparams, run_opts, prepared(prepare, hparams))
