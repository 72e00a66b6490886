"""Tasks of the grid: data, networks and metrics for speech and for images."""

import json

import torch
from torch import nn

from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.evaluation.phone_units import PhoneUnitCounts, pnmi_within
from speechbrain_vq.lobes.autoencoder import (
    ConvDecoder,
    ConvEncoder,
    SpeakerEncoder,
    WindowPredictor,
    normalize_utterances,
    stack_frames,
    utterance_moments,
)
from speechbrain_vq.lobes.features import LogMel
from speechbrain_vq.lobes.images import ImageDecoder, ImageEncoder, to_unit
from speechbrain_vq.nnet import kmeans, nearest
from speechbrain_vq.nnet.losses import entropy
from speechbrain_vq.recipes.CIFAR10.cifar10_prepare import (
    prepare as prepare_images,
)
from speechbrain_vq.recipes.CIFAR10.cifar10_prepare import read_images
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import (
    data_root,
    prepare,
)

DIM, CHANNELS, SPEAKER, MELS, STRIDE, RATE = 64, 64, 32, 80, 2, 50.0
SPLITS = ("train", "valid", "test")
# Tokens per image
TOKENS = 64


class Speech:
    """Autoencoder of log-mels of a corpus of manifests."""

    def __init__(self, folder, cache):
        self.data = _load_speech(folder, cache)

    def network(self, quantizer, config, window_weight):
        """Build the network around a quantizer."""
        return SpeechNetwork(quantizer, config["scale"], window_weight)

    def batch(self, config, generator):
        """Draw pieces [B, T, C], relative lengths and the utterances' moments."""
        data, frames = self.data["train"], config["frames"]
        pieces, moments = [], []
        for _ in range(config["pieces"]):
            index = int(
                torch.randint(len(data["mels"]), (), generator=generator)
            )
            mel = data["mels"][index]
            if len(mel) < frames:
                mel = mel.repeat(-(-frames // len(mel)), 1)
            last = len(mel) - frames + 1
            start = int(torch.randint(last, (), generator=generator))
            piece = mel[start : start + frames]
            if torch.rand((), generator=generator) < config["silence"]:
                noise = torch.randn(piece.shape, generator=generator)
                piece = mel.quantile(0.05, dim=0) + 0.1 * noise
            pieces.append(piece)
            moments.append(data["moments"][index])
        mean, std = (torch.cat(m) for m in zip(*moments, strict=True))
        lengths = torch.full((len(pieces),), 1 - config["padding"])
        valid = torch.arange(frames) < torch.round(lengths[0] * frames)
        return torch.stack(pieces) * valid.unsqueeze(1), lengths, (mean, std)

    @torch.no_grad()
    def evaluate(self, network, split, size):
        """Compute codebook usage, reconstruction error and PNMI."""
        usage, tables = Usage(size), {}
        data = self.data[split]
        for mel, moments, phones, lang in zip(
            *(data[k] for k in ("mels", "moments", "phones", "langs")),
            strict=True,
        ):
            output = network(mel.unsqueeze(0), torch.ones(1), moments)
            codes = output[2].flatten()
            if not usage.add(output):
                return {"tokens": len(codes), **dict.fromkeys(SPEECH)}
            table = tables.setdefault(lang, PhoneUnitCounts(size, RATE))
            table.add(codes.tolist(), phones)
        counts = (t.counts() for t in tables.values() if t.phones)
        return {**usage.metrics(), "pnmi": pnmi_within(counts)}


class Images:
    """Autoencoder of 32 x 32 images, from one code per 4 x 4 pixels."""

    def __init__(self, folder, cache):
        cache = cache.with_suffix("")
        prepare_images(folder, cache)
        self.data = {split: read_images(cache, split) for split in SPLITS}

    def network(self, quantizer, config, window_weight):
        """Build the network around a quantizer."""
        return ImageNetwork(quantizer, config["scale"])

    def batch(self, config, generator):
        """Draw images with about as many tokens as a batch of speech has."""
        tokens = config["pieces"] * config["frames"] // STRIDE
        size, images = max(tokens // TOKENS, 1), self.data["train"]
        return (
            images[torch.randint(len(images), (size,), generator=generator)],
        )

    @torch.no_grad()
    def evaluate(self, network, split, size):
        """Compute codebook usage and reconstruction error of 2,000 images."""
        usage = Usage(size)
        for images in self.data[split][:2000].split(100):
            if not usage.add(network(images)):
                return {"tokens": TOKENS * len(images), **dict.fromkeys(IMAGES)}
        return usage.metrics()


TASKS = {
    "recorded": Speech,
    "festvox-ru": Speech,
    "minispeech": Speech,
    "cifar10": Images,
}
# Metrics of each kind of task, with -1 if higher is better.
IMAGES = {"used": -1, "perplexity": -1, "l1": 1}
SPEECH = IMAGES | {"pnmi": -1}


class Usage:
    """Sums of codebook usage and reconstruction error over a data set."""

    def __init__(self, size):
        self.error, self.number, self.counts = 0.0, 0, torch.zeros(size)

    def add(self, output):
        """Add the output of a network, unless it is still in its warm-up.
        Return whether it was added."""
        error, number, codes, _ = output
        if (codes < 0).any():
            return False
        self.error += float(error)
        self.number += int(number)
        self.counts += torch.bincount(
            codes.flatten(), minlength=len(self.counts)
        )
        return True

    def metrics(self):
        """Compute the metrics."""
        return {
            "tokens": int(self.counts.sum()),
            "used": int((self.counts > 0).sum()),
            "perplexity": float(entropy(self.counts).exp()),
            "l1": self.error / self.number,
        }


class SpeechNetwork(nn.Module):
    """Autoencoder of utterance-normalized log-mels with a quantizer."""

    def __init__(self, quantizer, scale, window_weight=0.0):
        super().__init__()
        self.quantizer, self.scale = quantizer, scale
        self.window_weight = window_weight
        self.encoder = ConvEncoder(
            MELS, DIM, CHANNELS, STRIDE, utterance_norm=True, linear=True
        )
        self.speaker = SpeakerEncoder(MELS, SPEAKER, moments=True)
        self.decoder = ConvDecoder(
            DIM, MELS, SPEAKER, CHANNELS, STRIDE, linear=True, moments=True
        )
        if window_weight:
            self.window = WindowPredictor(DIM, MELS, STRIDE)

    def forward(self, mels, lengths, moments):
        latents, token_lengths = self.encoder(mels, lengths, moments)
        quantized, codes, loss = self.quantizer(
            latents * self.scale, token_lengths
        )[:3]
        if self.training and self.window_weight:
            x = normalize_utterances(mels, lengths, moments)
            window_error = self.window(quantized, x, lengths)
            loss = loss + self.window_weight * window_error
        speaker = self.speaker(mels, lengths, moments)
        decoded = self.decoder(quantized, speaker, token_lengths)
        error, number = self.decoder.errors(decoded, mels, lengths)
        return error, number, codes, loss


class ImageNetwork(nn.Module):
    """Autoencoder of images with a quantizer."""

    def __init__(self, quantizer, scale):
        super().__init__()
        self.quantizer, self.scale = quantizer, scale
        self.encoder = ImageEncoder(3, DIM, CHANNELS)
        self.decoder = ImageDecoder(DIM, 3, CHANNELS)
        # The likelihood of 256 levels would take most of the time.
        layers = self.decoder.layers[:-2]
        self.decoder.layers = layers.append(nn.Conv2d(CHANNELS, 3, 1))

    def forward(self, images):
        latents = self.encoder(images)
        quantized, codes, loss = self.quantizer(
            latents.flatten(1, 2) * self.scale, torch.ones(len(images))
        )[:3]
        decoded = self.decoder(quantized.view_as(latents))
        error = (decoded - to_unit(images)).abs().sum()
        return error, images.numel(), codes, loss


class LogMelKMeans(nn.Module):
    """K-means of pairs of normalized log-mel frames, without a network."""

    def __init__(self, data, size, seed):
        super().__init__()
        pairs = torch.cat(
            [
                self._pairs(mel.unsqueeze(0), moments)[0, : len(mel) // STRIDE]
                for mel, moments in zip(
                    data["mels"], data["moments"], strict=True
                )
            ]
        )
        generator = torch.Generator().manual_seed(seed)
        sample = torch.randperm(len(pairs), generator=generator)[:40960]
        self.centroids = kmeans(
            pairs[sample], size, generator=generator
        ).centroids

    @staticmethod
    def _pairs(mels, moments):
        x = normalize_utterances(mels, torch.ones(len(mels)), moments)
        return stack_frames(x, STRIDE)

    def forward(self, mels, lengths, moments):
        codes = nearest(self._pairs(mels, moments), self.centroids)
        mean, std = (m.unsqueeze(1) for m in moments)
        decoded = self.centroids[codes].reshape(1, -1, MELS)
        decoded = decoded[:, : mels.shape[1]] * std + mean
        return (decoded - mels).abs().sum(), mels.numel(), codes, None


def _load_speech(folder, cache):
    """Load log-mels, their moments, phones and languages into memory."""
    if cache.exists():
        return torch.load(cache)
    manifests = prepare(folder, cache.with_suffix(""))
    features, data = LogMel(), {}
    for split in SPLITS:
        text = (manifests / f"{split}.json").read_text(encoding="utf-8")
        utts = json.loads(text.replace("{data_root}", data_root(manifests)))
        wavs = [read_audio(u["wav"], 16000) for u in utts.values()]
        wavs = [wav.unsqueeze(0) for wav in wavs]
        if split == "train":
            features.fit(wavs[:: max(len(wavs) // 200, 1)])
        mels = [features(w, torch.ones(1))[0] for w in wavs]
        data[split] = {
            "mels": [m[0] for m in mels],
            "moments": [utterance_moments(m, torch.ones(1)) for m in mels],
            "phones": [u["phones"] for u in utts.values()],
            "langs": [u.get("lang", "") for u in utts.values()],
        }
    torch.save(data, cache)
    return data
