"""Recipe for training a speech codec, an autoencoder with a residual vector
quantizer, on the recorded speech in Debian packages.

To run this recipe (README.md lists the packages):
> python train.py hparams/train.yaml --data_folder=PACKAGES
"""

import sys
from importlib import import_module

import speechbrain as sb
import torch

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.inference.vocoder_loading import load_vocoder
from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.presets import BUNDLED_VOCODER
from speechbrain_vq.recipes.DebianSpeech.debianspeech_prepare import prepare

# UnitBrain and its data pipeline
units = import_module("speechbrain_vq.recipes.MiniSpeech.unit-discovery.train")

functional = torch.nn.functional


class CodecBrain(units.UnitBrain):
    """Train an autoencoder whose decoded log-mels preserve pitch and voicing.

    The error of log-mels hardly depends on the harmonics of low voices. So a
    frozen vocoder reads pitch and voicing from the log-mels of the recording
    and from the decoded ones, and their divergence is added to the loss.
    """

    def on_fit_start(self):
        """Load the vocoder before the first batches are timed."""
        if self.hparams.pitch_weight:
            vocoder = load_vocoder(BUNDLED_VOCODER).generator
            if vocoder.settings != self.modules.features.settings:
                raise ValueError(
                    f"--pitch_weight={self.hparams.pitch_weight:g} requires "
                    f"log-mels with {vocoder.settings}. Use these, or "
                    "--pitch_weight=0."
                )
            self.vocoder = vocoder.to(self.device)
        super().on_fit_start()

    def compute_objectives(self, predictions, batch, stage):
        """Compute the autoencoder's loss and, in training, the divergence of
        pitch and voicing."""
        loss = super().compute_objectives(predictions, batch, stage)
        if stage == sb.Stage.TRAIN and self.hparams.pitch_weight:
            features, lengths, decoded, *_ = predictions
            decoded = decoded[:, : features.shape[1]]
            penalty = self.pitch_divergence(features, decoded, lengths)
            loss = loss + self.hparams.pitch_weight * penalty
        return loss

    def pitch_divergence(self, features, decoded, lengths):
        """Compute the mean divergence of pitch over voiced frames, plus that of
        voicing over all frames, for features [B, T, K] with relative lengths
        [B]; 0 if the decoded features equal those of the recording."""
        denormalize = self.modules.features.denormalize
        with torch.no_grad():
            target = self.vocoder.controls(denormalize(features))
        controls = self.vocoder.controls(denormalize(decoded))
        mask = frame_mask(features, lengths).to(features.dtype)
        voiced = target.voicing.sigmoid() * mask
        pitch = divergence(target.pitch, controls.pitch)
        # Logits of unvoiced and voiced
        voicing = divergence(
            functional.pad(target.voicing.unsqueeze(-1), (1, 0)),
            functional.pad(controls.voicing.unsqueeze(-1), (1, 0)),
        )
        return (pitch * voiced).sum() / voiced.sum().clamp(min=1) + (
            voicing * mask
        ).sum() / mask.sum()


def divergence(target, logits):
    """Compute the Kullback-Leibler divergence [...] from logits of target
    distributions [..., C] to predicted ones."""
    return functional.kl_div(
        logits.log_softmax(-1),
        target.log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)


if __name__ == "__main__":
    with clean_errors():
        units.run(prepare, sys.argv[1:], CodecBrain)
