"""Features from pretrained self-supervised encoders, and a linear encoder.

The pretrained encoder is frozen and not part of a model's weights. A model
records its repository and commit; the user who loads the model provides it.
"""

import importlib
import os
import re
from collections.abc import Iterable

import torch
from torch import nn

from speechbrain_vq.nnet.masks import frame_mask

from .autoencoder import stack_frames, stack_neighbors
from .features import LogMel

# Classes in modules of speechbrain.integrations.huggingface with their names in
# lower case.
FAMILIES = ("WavLM", "HuBERT", "Wav2Vec2", "Whisper")
# Seconds of audio to encode at once, the limit of Whisper.
_WINDOW = 30


class SSLFeatures(nn.Module):
    """Normalized hidden states of a frozen encoder from the Hub, one frame per
    hop. Call ``load_encoder`` before the first use.

    Utterances are encoded one by one, as SpeechBrain's wrappers normalize over
    padding and the batch, and in windows of 30 s. Each channel is normalized by
    the mean and standard deviation that ``fit()`` computes.

    Arguments
    ---------
    family : str
        SpeechBrain wrapper: ``WavLM``, ``HuBERT``, ``Wav2Vec2`` or ``Whisper``.
    source : str
        Repository of the encoder on the Hub, such as ``microsoft/wavlm-base``.
    revision : str
        Commit in the repository, 40 hexadecimal digits.
    feature_dim : int
        Channels of a hidden state.
    layers : int or list of int
        Index of the hidden state; 0 is the input of the first layer. Several
        hidden states are averaged.
    layer_weights : list of float, optional
        Weights of the average; by default equal.
    n_mels : int
        Number of log-mel bands to append to each frame, from which
        ``inverse`` synthesizes waveforms; 0 appends none.
    sample_rate, hop_length : int
        Sampling rate in Hz, and step between frames, in samples.

    Example
    -------
    >>> commit = "efa81aae7ff777e464159e0f877d54eac5b84f81"
    >>> features = SSLFeatures("WavLM", "microsoft/wavlm-base", commit, 768, 6)
    >>> features.load_encoder("wavlm-base")  # doctest: +SKIP
    >>> wavs = torch.randn(2, 16000)
    >>> features(wavs, torch.ones(2))[0].shape  # doctest: +SKIP
    torch.Size([2, 50, 768])
    """

    def __init__(
        self,
        family: str,
        source: str,
        revision: str,
        feature_dim: int,
        layers: int | list[int],
        layer_weights: list[float] | None = None,
        n_mels: int = 0,
        sample_rate: int = 16000,
        hop_length: int = 320,
    ):
        super().__init__()
        if family not in FAMILIES:
            raise ValueError(
                f"There is no encoder family '{family}': choose from "
                f"{', '.join(FAMILIES)}."
            )
        if not re.fullmatch("[0-9a-f]{40}", str(revision)):
            raise ValueError(
                f"The revision of {source} is '{revision}': name a commit (40 "
                "hexadecimal digits), since a branch or tag may change."
            )
        self.family, self.source, self.revision = family, source, revision
        self.feature_dim = feature_dim
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        weights = layer_weights or [1.0] * len(self.layers)
        if len(weights) != len(self.layers) or not sum(weights) > 0:
            raise ValueError(
                f"layer_weights={layer_weights}: layers={self.layers} requires "
                f"{len(self.layers)} weights with a sum above 0."
            )
        self.weights = [weight / sum(weights) for weight in weights]
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.mel = None
        if n_mels:
            self.mel = LogMel(sample_rate, n_mels, hop_length=hop_length)
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("std", torch.ones(feature_dim))
        # Norms of the weights of the encoder used in training; 0 until known.
        self.register_buffer("encoder_norms", torch.zeros(2))
        # A list keeps the encoder out of the state_dict.
        self._encoder: list[nn.Module] = []

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    @property
    def settings(self) -> dict[str, float]:
        """Settings of the log-mels, which a vocoder must share."""
        return self._mel().settings

    def load_encoder(self, folder: str | os.PathLike) -> None:
        """Load the encoder with SpeechBrain's wrapper from a folder, a snapshot
        of ``source`` at ``revision``.

        Raises
        ------
        ImportError
            If transformers is not installed.
        ValueError
            If the encoder does not fit these settings, or is not the one used
            in training.
        """
        home = f"speechbrain.integrations.huggingface.{self.family.lower()}"
        try:
            importlib.import_module("transformers")
        except ImportError as error:
            raise ImportError(
                f"{self.family} needs transformers: "
                'pip install "speechbrain-vq[ssl]"'
            ) from error
        wrapper = getattr(importlib.import_module(home), self.family)
        is_whisper = self.family == "Whisper"
        encoder = wrapper(
            os.fspath(folder),
            # Weights are read in place; nothing is saved.
            save_path=os.fspath(folder),
            freeze=True,
            output_all_hiddens=True,
            **({"encoder_only": True} if is_whisper else {}),
        )
        encoder.eval().float()
        config = encoder.model.config
        size, number = config.hidden_size, config.num_hidden_layers
        if size != self.feature_dim:
            raise ValueError(
                f"The encoder in {folder} has hidden states with {size} "
                f"channels, not {self.feature_dim}: set feature_dim."
            )
        if not all(0 <= layer <= number for layer in self.layers):
            raise ValueError(
                f"layers={self.layers}: the encoder in {folder} has hidden "
                f"states 0 to {number}."
            )
        self._margin = 0 if is_whisper else self._find_margin(config)
        self._check_same(encoder, folder)
        self._encoder[:] = [encoder.to(self.mean.device)]

    def _find_margin(self, config) -> int:
        """Compute the number of samples that a frame covers beyond its hop."""
        width, hop = 1, 1
        for kernel, stride in zip(
            config.conv_kernel, config.conv_stride, strict=True
        ):
            width, hop = width + (kernel - 1) * hop, hop * stride
        if hop != self.hop_length:
            raise ValueError(
                f"The encoder has a frame every {hop} samples, not every "
                f"{self.hop_length}: set hop_length."
            )
        return width - hop

    def _check_same(self, encoder: nn.Module, folder) -> None:
        """Raise a ValueError if the norms of the encoder's weights differ from
        training."""
        norms = torch.zeros(2, dtype=torch.float64)
        for name, weight in encoder.named_parameters():
            # Only used in pretraining, and missing from some files.
            if not name.endswith("masked_spec_embed"):
                weight = weight.detach().double()
                norms += torch.stack((weight.abs().sum(), weight.norm() ** 2))
        norms = norms.to(self.encoder_norms)
        if not self.encoder_norms.any():
            self.encoder_norms.copy_(norms)
        elif not torch.allclose(norms, self.encoder_norms, rtol=1e-6):
            raise ValueError(
                f"The weights of the encoder in {folder} differ from those "
                f"that this model was trained with: {self.source} at commit "
                f"{self.revision}."
            )

    def forward(
        self, wavs: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute features [B, samples // hop_length, feature_dim + n_mels]
        and their relative lengths [B] from waveforms [B, samples] with relative
        lengths [B]."""
        number = wavs.shape[1] // self.hop_length
        if not number:
            raise ValueError(
                f"shorter than one frame: {wavs.shape[1]} of "
                f"{self.hop_length} samples. Pad the signal."
            )
        features = wavs.new_zeros(len(wavs), number, self.feature_dim)
        frames = []
        for row, wav, length in zip(features, wavs, lengths, strict=True):
            states = self._encode(wav[: round(float(length) * len(wav))])
            row[: len(states)] = states
            frames.append(len(states))
        features = (features - self.mean) / self.std
        if self.mel is not None:
            mels, _ = self.mel(wavs, lengths)
            features = torch.cat((features, mels), dim=2)
        lengths = torch.tensor(frames, device=wavs.device) / number
        return features * frame_mask(features, lengths).unsqueeze(2), lengths

    @torch.no_grad()
    def _encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Compute hidden states [samples // hop_length, D] of a waveform."""
        if not self._encoder:
            raise ValueError(
                f"The features require {self.source}, another repository, "
                "which is only loaded at your request: "
                f'VQTokenizer.from_hparams(..., ssl_encoder="{self.source}"), '
                "or a folder with a copy of it."
            )
        states = [wav.new_zeros(0, self.feature_dim)]
        for piece in wav.split(_WINDOW * self.sample_rate):
            number = len(piece) // self.hop_length
            if number:
                padded = nn.functional.pad(piece, (0, self._margin))
                hidden = self._encoder[0](padded.unsqueeze(0))[:, 0, :number]
                layers = zip(self.weights, self.layers, strict=True)
                states.append(sum(w * hidden[i].to(wav) for w, i in layers))
        return torch.cat(states)

    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Compute normalization statistics from batches of waveforms
        [B, samples] without padding."""
        wavs = [wav for batch in batches for wav in batch.to(self.mean.device)]
        if not wavs:
            raise ValueError(
                "The feature normalization requires audio: pass at least one "
                "waveform."
            )
        states = torch.cat([self._encode(wav) for wav in wavs])
        self.mean.copy_(states.mean(0))
        # The bound prevents a constant channel from being amplified.
        self.std.copy_(states.std(0, correction=0).clamp(min=1e-4))
        if self.mel is not None:
            self.mel.fit(wav.unsqueeze(0) for wav in wavs)

    def denormalize(self, features: torch.Tensor) -> torch.Tensor:
        """Return log-mels [..., n_mels] without normalization from features
        [..., feature_dim + n_mels]."""
        return self._mel().denormalize(features[..., self.feature_dim :])

    def inverse(self, features: torch.Tensor) -> torch.Tensor:
        """Synthesize waveforms [B, T * hop_length] from the log-mels in
        features [B, T, feature_dim + n_mels]; see ``LogMel.inverse``."""
        return self._mel().inverse(features[..., self.feature_dim :])

    def _mel(self) -> LogMel:
        if self.mel is None:
            raise ValueError(
                f"This model decodes to hidden states of {self.source}, not to "
                "speech: train it with --mel_bands=80, or choose a vocoder for "
                "units with use_vocoder."
            )
        return self.mel

    def _apply(self, fn, recurse=True):
        for encoder in self._encoder:
            encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)


class FrameEncoder(nn.Module):
    """Linear encoder of every ``stride`` frames, and optionally of their
    neighbors.

    Arguments
    ---------
    input_dim : int
        Number of feature channels to encode. Channels beyond these are only
        for the decoder.
    output_dim : int
        Channels of the latents.
    stride : int
        Frames per latent.
    window : int
        Latents on either side whose frames are also encoded.

    Example
    -------
    >>> encoder = FrameEncoder(768, 64)
    >>> latents, lengths = encoder(torch.randn(2, 50, 848), torch.ones(2))
    >>> latents.shape
    torch.Size([2, 50, 64])
    """

    def __init__(
        self, input_dim: int, output_dim: int, stride: int = 1, window: int = 0
    ):
        super().__init__()
        self.input_dim = input_dim
        self.stride = stride
        self.window = window
        width = (2 * window + 1) * stride
        self.linear = nn.Linear(width * input_dim, output_dim)

    @property
    def context(self) -> tuple[int, int]:
        """Frames of context before and after a latent's own stride."""
        return self.window * self.stride, self.window * self.stride

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features [B, T, C] with relative lengths [B], zero at padding,
        as latents [B, ceil(T / stride), output_dim] and their relative lengths
        [B]."""
        frames = torch.round(lengths * features.shape[1])
        stacked = stack_frames(features[..., : self.input_dim], self.stride)
        latents = self.linear(stack_neighbors(stacked, self.window))
        lengths = torch.ceil(frames / self.stride) / latents.shape[1]
        return latents * frame_mask(latents, lengths).unsqueeze(2), lengths
