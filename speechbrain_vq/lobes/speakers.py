"""Speaker embeddings for a decoder, by a lookup table or a pretrained encoder.

``speechbrain_vq.lobes.autoencoder.SpeakerEncoder`` is trained with the decoder
instead. All have ``output_dim``, and their zero vector is the average speaker.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from speechbrain_vq._names import unknown_name
from speechbrain_vq.nnet.normalization import MaskedBatchNorm

MAX_NAME_BYTES = 64
# Minimum duration of a recording in seconds; shorter ones are repeated, since
# pretrained encoders have convolutions that require several frames.
MIN_DURATION = 0.5


class SpeakerTable(nn.Module):
    """Lookup table of speaker embeddings by name. The names are part of the
    ``state_dict()``.

    Arguments
    ---------
    num_speakers, output_dim : int
        Maximum number of speakers, and dimension of the embeddings.

    Example
    -------
    >>> table = SpeakerTable(100, 32)
    >>> table.fill(["p225", "p226"])
    >>> table(["p226", "p225", "p226"]).shape
    torch.Size([3, 32])
    >>> table(["anna"])
    Traceback (most recent call last):
    ValueError: No speaker 'anna'. Known: p225, p226.
    """

    input_type = "names"

    def __init__(self, num_speakers: int, output_dim: int):
        super().__init__()
        self.output_dim = output_dim
        self.weight = nn.Parameter(torch.randn(num_speakers, output_dim))
        letters = torch.zeros(num_speakers, MAX_NAME_BYTES, dtype=torch.uint8)
        self.register_buffer("letters", letters)

    @property
    def names(self) -> list[str]:
        """Names of the speakers, in row order."""
        rows = self.letters.cpu().numpy()
        names = (row.tobytes().rstrip(b"\0") for row in rows)
        return [name.decode(errors="replace") for name in names if name]

    @torch.no_grad()
    def fill(self, names: Iterable[str]) -> None:
        """Assign sorted names or numbers to the rows. Raises ValueError if
        there are no names, more names than rows, or invalid names."""
        names = sorted({str(name) for name in names})
        if not 0 < len(names) <= len(self.letters):
            raise ValueError(
                f"The data has {len(names)} speakers, and the table holds "
                f"1 to {len(self.letters)}: set num_speakers."
            )
        self.letters.zero_()
        for row, name in zip(self.letters, names, strict=False):
            data = name.encode()
            if not 0 < len(data) <= MAX_NAME_BYTES or "\0" in name:
                raise ValueError(
                    f"A speaker name must have 1 to {MAX_NAME_BYTES} bytes, "
                    f"none of them NUL; {name!r} has {len(data)}: rename it."
                )
            row[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)

    def forward(
        self, names: Sequence[str], known_only: bool = True
    ) -> torch.Tensor:
        """Return the embeddings [B, output_dim] of B speakers, relative to the
        mean of the table. For an unknown name, raise ValueError or, without
        ``known_only``, return the average speaker."""
        rows = {name: row for row, name in enumerate(self.names)}
        unknown = [name for name in names if name not in rows]
        if unknown and known_only:
            raise ValueError(unknown_name("speaker", unknown[0], rows))
        vectors = self.weight[: len(rows)]
        vectors = torch.cat((vectors - vectors.mean(0), vectors[:1] * 0))
        indices = [rows.get(name, len(rows)) for name in names]
        return vectors[torch.tensor(indices, device=vectors.device)]


class PretrainedSpeaker(nn.Module):
    """Frozen SpeechBrain speaker encoder (x-vectors, ECAPA) with a trained
    projection. The encoder's weights are saved and exported with the model.

    Arguments
    ---------
    compute_features, mean_var_norm, embedding_model : torch.nn.Module
        Modules of the pretrained encoder's ``hyperparams.yaml``.
    embedding_dim, output_dim : int
        Dimension of the embeddings before (``lin_neurons``) and after the
        projection.
    sample_rate : int
        Sampling rate of the waveforms, in Hz.

    Example
    -------
    >>> from speechbrain.lobes.features import Fbank
    >>> from speechbrain.lobes.models.Xvector import Xvector
    >>> from speechbrain.processing.features import InputNormalization
    >>> speaker = PretrainedSpeaker(
    ...     Fbank(n_mels=24),
    ...     InputNormalization(norm_type="sentence", std_norm=False),
    ...     Xvector(in_channels=24, lin_neurons=16),
    ...     embedding_dim=16,
    ...     output_dim=8,
    ... )
    >>> speaker(torch.randn(2, 16000), torch.tensor([1.0, 0.7])).shape
    torch.Size([2, 8])
    """

    input_type = "waveforms"

    def __init__(
        self,
        compute_features: nn.Module,
        mean_var_norm: nn.Module,
        embedding_model: nn.Module,
        embedding_dim: int,
        output_dim: int,
        sample_rate: int = 16000,
    ):
        super().__init__()
        if getattr(mean_var_norm, "norm_type", "sentence") != "sentence":
            raise ValueError(
                "mean_var_norm must be of the type 'sentence', not "
                f"{mean_var_norm.norm_type!r}: the statistics of other types "
                "are not in the state_dict."
            )
        stft = getattr(compute_features, "compute_STFT", None)
        rate = getattr(stft, "sample_rate", sample_rate)
        if rate != sample_rate:
            raise ValueError(
                f"The pretrained encoder requires {rate} Hz, but the model has "
                f"{sample_rate} Hz: set sample_rate to {rate}, or train the "
                "speaker encoder with the model (SpeakerEncoder)."
            )
        self.output_dim = output_dim
        self.min_samples = round(MIN_DURATION * sample_rate)
        self.compute_features = compute_features
        self.mean_var_norm = mean_var_norm
        self.embedding_model = embedding_model
        for module in self._frozen():
            module.requires_grad_(False)
        self.linear = nn.Linear(embedding_dim, output_dim)
        self.norm = MaskedBatchNorm(output_dim, affine=False)
        self.train()

    def forward(
        self, wavs: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Embed waveforms [B, samples] with relative lengths [B] as
        [B, output_dim]."""
        samples = torch.round(lengths * wavs.shape[1]).long()
        size = self.linear.in_features
        embeddings = wavs.new_zeros(len(wavs), size, dtype=torch.float32)
        # Padding would change the embeddings, so batch only equal lengths.
        for length in samples.unique().tolist():
            rows = samples == length
            embeddings[rows] = self._embed(wavs[rows, :length])
        return self.norm(self.linear(embeddings))

    def train(self, mode: bool = True) -> "PretrainedSpeaker":
        """Set the training mode; the encoder stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self):
        return self.compute_features, self.mean_var_norm, self.embedding_model

    @torch.no_grad()
    def _embed(self, wavs):
        """Compute normalized embeddings of waveforms without padding."""
        if 0 < wavs.shape[1] < self.min_samples:
            wavs = wavs.repeat(1, -(-self.min_samples // wavs.shape[1]))
        elif wavs.shape[1] == 0:
            wavs = wavs.new_zeros(len(wavs), self.min_samples)
        lengths = torch.ones(len(wavs), device=wavs.device)
        with torch.autocast(wavs.device.type, enabled=False):
            features = self.compute_features(wavs.float())
            features = self.mean_var_norm(features, lengths)
            embeddings = self.embedding_model(features, lengths).flatten(1)
        return nn.functional.normalize(embeddings, dim=1)


def voices(
    speaker: nn.Module,
    wavs: tuple[torch.Tensor, torch.Tensor],
    features: tuple[torch.Tensor, torch.Tensor],
    names: Sequence[str] | None = None,
) -> torch.Tensor:
    """Compute the speaker embeddings [B, S] of a batch.

    The speaker module takes waveforms [B, samples] or features [B, T, C], each
    with relative lengths [B], or names. Unknown names get the average speaker.
    """
    # DistributedDataParallel wraps the module.
    module = getattr(speaker, "module", speaker)
    input_type = getattr(module, "input_type", "features")
    if input_type == "names":
        unknown = [""] * len(wavs[0])
        return speaker(names or unknown, known_only=False)
    return speaker(*(wavs if input_type == "waveforms" else features))
