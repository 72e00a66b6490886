"""Whose voice a decoder speaks with: of a table of known ones, or as an encoder
that was trained to tell speakers apart hears them.

A third way, which learns to hear any voice along with the rest, is
``speechbrain_vq.lobes.autoencoder.SpeakerEncoder``. All have ``output_dim``,
and zeros stand for the average voice.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import torch
from torch import nn

from speechbrain_vq.nnet.normalization import MaskedBatchNorm

# Room for a name, in bytes.
MAX_NAME = 64
# The convolutions of an encoder reach over some frames; a recording that is
# shorter, in seconds, is said again.
SHORTEST = 0.5


class SpeakerTable(nn.Module):
    """An embedding for each speaker of the training, by name.

    The names are a part of the weights: a model that is loaded knows them.

    Arguments
    ---------
    num_speakers : int
        How many there is room for.
    output_dim : int
        Size of the embeddings.

    Example
    -------
    >>> table = SpeakerTable(100, 32)
    >>> table.fill(["p225", "p226"])
    >>> table(["p226", "p225", "p226"]).shape
    torch.Size([3, 32])
    >>> table(["anna"])
    Traceback (most recent call last):
    ValueError: There is no speaker 'anna'. Known: p225, p226.
    """

    # What forward() takes.
    hears = "names"

    def __init__(self, num_speakers: int, output_dim: int):
        super().__init__()
        self.output_dim = output_dim
        self.weight = nn.Parameter(torch.randn(num_speakers, output_dim))
        letters = torch.zeros(num_speakers, MAX_NAME, dtype=torch.uint8)
        self.register_buffer("letters", letters)

    @property
    def names(self) -> list[str]:
        """Of the speakers, in the order of their rows."""
        rows = self.letters.cpu().numpy()
        names = (row.tobytes().rstrip(b"\0") for row in rows)
        return [name.decode(errors="replace") for name in names if name]

    @torch.no_grad()
    def fill(self, names: Iterable[str]) -> None:
        """Gives the rows their names.

        Arguments
        ---------
        names : iterable of str
            Of the speakers; their order makes no difference. Numbers are
            names, too.

        Raises
        ------
        ValueError
            If there are more than there is room for, none, or one has too
            long a name.
        """
        names = sorted({str(name) for name in names})
        if not 0 < len(names) <= len(self.letters):
            raise ValueError(
                f"There are {len(names)} speakers, and the table has room for "
                f"1 to {len(self.letters)}: set num_speakers."
            )
        self.letters.zero_()
        for row, name in zip(self.letters, names, strict=False):
            data = name.encode()
            if not 0 < len(data) <= MAX_NAME or "\0" in name:
                raise ValueError(
                    f"A speaker's name has 1 to {MAX_NAME} bytes; {name!r} "
                    f"has {len(data)}."
                )
            row[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)

    def forward(
        self, names: Sequence[str], known_only: bool = True
    ) -> torch.Tensor:
        """The embeddings, less the average one.

        Arguments
        ---------
        names : sequence of str
            Of B speakers.
        known_only : bool
            Whether an unknown one is an error; else it is the average voice.

        Returns
        -------
        torch.Tensor
            [B, output_dim].

        Raises
        ------
        ValueError
            If a name is unknown; the message lists those that are known.
        """
        rows = {name: row for row, name in enumerate(self.names)}
        unknown = [name for name in names if name not in rows]
        if unknown and known_only:
            raise ValueError(unknown_speaker(unknown[0], rows))
        vectors = self.weight[: len(rows)]
        vectors = torch.cat((vectors - vectors.mean(0), vectors[:1] * 0))
        chosen = [rows.get(name, len(rows)) for name in names]
        return vectors[torch.tensor(chosen, device=vectors.device)]


class PretrainedSpeaker(nn.Module):
    """Speaker embeddings of an encoder that SpeechBrain trained (d-vectors,
    x-vectors, ECAPA), which stays as it is, projected to the decoder's size.

    The encoder is a part of the model: once ``load`` has read its weights,
    they are saved and exported with the rest. Like ``SpeakerEncoder`` it
    hears any voice.

    Arguments
    ---------
    compute_features, mean_var_norm, embedding_model : torch.nn.Module
        As in the ``hyperparams.yaml`` of the pretrained encoder.
    embedding_dim : int
        Size of its embeddings (``lin_neurons``).
    output_dim : int
        Size for the decoder.
    sample_rate : int
        Of what it hears, in Hz.

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

    hears = "waveforms"

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
                f"{mean_var_norm.norm_type!r}: the statistics of the others "
                "are none of the weights, and would be lost."
            )
        stft = getattr(compute_features, "compute_STFT", None)
        rate = getattr(stft, "sample_rate", sample_rate)
        if rate != sample_rate:
            raise ValueError(
                f"The pretrained encoder hears {rate} Hz, and the model is of "
                f"{sample_rate} Hz: set sample_rate to {rate}, or take an "
                "encoder that learns along (SpeakerEncoder)."
            )
        self.output_dim = output_dim
        self.shortest = round(SHORTEST * sample_rate)
        self.compute_features = compute_features
        self.mean_var_norm = mean_var_norm
        self.embedding_model = embedding_model
        for part in self._frozen():
            part.requires_grad_(False)
        self.linear = nn.Linear(embedding_dim, output_dim)
        self.norm = MaskedBatchNorm(output_dim, affine=False)
        self.train()

    def forward(
        self, wavs: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """[B, samples] with relative lengths [B] to [B, output_dim]."""
        samples = torch.round(lengths * wavs.shape[1]).long()
        size = self.linear.in_features
        embeddings = wavs.new_zeros(len(wavs), size, dtype=torch.float32)
        # The encoders hear padding; of one length there is none.
        for number in samples.unique().tolist():
            rows = samples == number
            embeddings[rows] = self._embed(wavs[rows, :number])
        return self.norm(self.linear(embeddings))

    def train(self, mode: bool = True) -> "PretrainedSpeaker":
        """The encoder stays in evaluation mode."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def _frozen(self):
        return self.compute_features, self.mean_var_norm, self.embedding_model

    @torch.no_grad()
    def _embed(self, wavs):
        if 0 < wavs.shape[1] < self.shortest:
            wavs = wavs.repeat(1, -(-self.shortest // wavs.shape[1]))
        elif wavs.shape[1] == 0:
            wavs = wavs.new_zeros(len(wavs), self.shortest)
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
    """The embeddings of a batch, whatever they are made of.

    Arguments
    ---------
    speaker : torch.nn.Module
        One of this file, or a ``SpeakerEncoder``.
    wavs : tuple
        Waveforms [B, samples] and their relative lengths [B].
    features : tuple
        Features [B, T, C] and their relative lengths [B].
    names : sequence of str, optional
        Of the speakers, where they are known. Who is not in a table is given
        the average voice.

    Returns
    -------
    torch.Tensor
        [B, S].
    """
    # In a distributed run it is wrapped.
    hears = getattr(getattr(speaker, "module", speaker), "hears", "features")
    if hears == "names":
        unknown = [""] * len(wavs[0])
        return speaker(names or unknown, known_only=False)
    return speaker(*(wavs if hears == "waveforms" else features))


def unknown_speaker(name: str, known: Iterable[str]) -> str:
    """Says that a name is not in a table, and what is."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if len(known) > 120:
        known = [*known[:120], f"... ({len(known)} in all)"]
    return f"There is no speaker {name!r}.{hint} Known: {', '.join(known)}."
