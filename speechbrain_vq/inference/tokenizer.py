"""Tokenize and resynthesize speech with a pretrained quantizer."""

import math
import pathlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from speechbrain_vq.dataio.audio import (
    MAX_RATE,
    MIN_RATE,
    as_waveforms,
    check_peak,
)
from speechbrain_vq.dataio.chunks import (
    Span,
    check_seconds,
    in_pieces,
    token_span,
)
from speechbrain_vq.lobes.speakers import voices
from speechbrain_vq.nnet.masks import frame_mask

from .audio_files import AudioFilesMixin
from .codec import CodecMixin
from .interfaces import HparamsError, VQPretrained
from .parts import PartsMixin
from .vocoders import MelVocoder, UnitVocoder, one_by_one


class VQTokenizer(AudioFilesMixin, PartsMixin, CodecMixin, VQPretrained):
    """Pretrained model that encodes speech to tokens and decodes tokens.

    Its modules are ``features`` (waveforms to features and back), ``encoder``,
    ``quantizer``, ``speaker`` (speaker embeddings) and ``decoder``, as in
    ``recipes/MiniSpeech/unit-discovery``. A decoder with a method ``generate``
    (``WaveNetDecoder``) outputs waveforms, deterministically.

    Tokens have the shape [B, T], or [B, T, C] with C codebooks. The interfaces
    of DASB (``CodecMixin``) and EnCodec (``EncodecAdapter``) always use the
    last dimension. See ``VQPretrained`` for the arguments.

    Example
    -------
    >>> tokenizer = VQTokenizer.from_hparams("results/model")  # doctest: +SKIP
    >>> tokens = tokenizer.encode_file("speech.wav")  # doctest: +SKIP
    >>> tokenizer.reconstruct_file("speech.wav", "out.wav")  # doctest: +SKIP
    """

    HPARAMS_NEEDED = ["sample_rate", "token_rate"]
    MODULES_NEEDED = ["features", "encoder", "quantizer", "speaker", "decoder"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _check_rates(self.hparams, self.mods.features, self.mods.encoder)
        self.hparams.sample_rate = int(self.hparams.sample_rate)
        self.vocoder = None

    @classmethod
    def from_hparams(
        cls,
        source: str | pathlib.Path,
        *args,
        vocoder: str | pathlib.Path | MelVocoder | UnitVocoder | None = None,
        num_codebooks: int | None = None,
        ssl_encoder: str | pathlib.Path | None = None,
        **kwargs,
    ) -> "VQTokenizer":
        """Load a model and its vocoder.

        Arguments
        ---------
        source : path or str
            Model folder, bundled model (``speech``), or model on the Hub.
        *args, **kwargs
            See ``VQPretrained.from_hparams``.
        vocoder : path, str, MelVocoder or UnitVocoder, optional
            See ``use_vocoder``. The default is the subfolder that the model's
            yaml names under ``vocoder``. Without that key, it is the bundled
            vocoder if the model's log-mels have the settings of the recipes,
            else Griffin-Lim.
        num_codebooks : int, optional
            See ``use_codebooks``; all by default.
        ssl_encoder : path or str, optional
            See ``use_ssl_encoder``; none is loaded by default.

        Returns
        -------
        VQTokenizer
            The model, in evaluation mode.

        Raises
        ------
        FileNotFoundError, ValueError
            If the model or the vocoder is missing or invalid, or the two do not
            match.
        """
        model = super().from_hparams(source, *args, **kwargs)
        names = ("token", "cache_dir", "local_files_only", "force_download")
        download = {name: kwargs[name] for name in names if name in kwargs}
        model.use_vocoder(vocoder or model.load_own_vocoder(), **download)
        model.use_codebooks(num_codebooks)
        if ssl_encoder:
            model.use_ssl_encoder(ssl_encoder, **download)
        return model

    @property
    def sample_rate(self) -> int:
        """Sampling rate of the waveforms, in Hz."""
        return self.hparams.sample_rate

    @property
    def token_rate(self) -> float:
        """Tokens per second."""
        return self.hparams.token_rate

    @property
    def codebook_size(self) -> int:
        """Number of codewords in each codebook."""
        return self.mods.quantizer.codebook_size

    @property
    def speakers(self) -> list[str]:
        """Names in the model's speaker table; empty if it has none."""
        return getattr(self.mods.speaker, "names", [])

    @property
    def decodes_to_samples(self) -> bool:
        """Whether the decoder outputs waveforms instead of features."""
        return hasattr(self.mods.decoder, "generate")

    @property
    def span(self) -> Span | None:
        """Receptive field of a token, or None if it is unbounded."""
        return token_span(self.mods.features, self.mods.encoder)

    @torch.no_grad()
    def encode_batch(
        self, wavs: Tensor | np.ndarray, wav_lens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode waveforms to tokens.

        Padding does not change the tokens, up to rounding. On three hours of
        speech with one codebook, one token of 563 233 differed. With residual
        codebooks, a near-tie in an early one also changes later ones.

        Arguments
        ---------
        wavs : torch.Tensor or numpy.ndarray
            Waveforms, [B, samples], [B, 1, samples] or [samples], in [-1, 1]
            or as 16-bit integers. Samples beyond ``wav_lens`` are ignored.
        wav_lens : torch.Tensor, optional
            Relative lengths, [B]; by default all 1.

        Returns
        -------
        tuple
            Tokens [B, T] (or [B, T, C] with C codebooks), zero at padding, and
            their relative lengths [B].

        Raises
        ------
        TypeError, ValueError
            If the waveforms have an invalid shape, type or scale.

        Example
        -------
        >>> tokenizer = VQTokenizer.from_hparams("units")
        >>> tokens, lengths = tokenizer.encode_batch(torch.rand(2, 16000))
        >>> tokens.shape, lengths
        (torch.Size([2, 50]), tensor([1., 1.]))
        """
        latents, lengths = self.latents_batch(wavs, wav_lens)
        tokens = self.unfold(self.mods.quantizer.encode(latents, lengths))
        mask = frame_mask(latents, lengths).unsqueeze(-1)
        return self.fold(tokens[..., : self.num_codebooks] * mask), lengths

    @torch.no_grad()
    def latents_batch(
        self, wavs: Tensor | np.ndarray, wav_lens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode waveforms to latents [B, T, H], the input of the quantizer,
        and their relative lengths [B]. See ``encode_batch``."""
        waveforms = self._as_batch(wavs, wav_lens)
        with self.autocast():
            return self.mods.encoder(*self.mods.features(*waveforms))

    @torch.no_grad()
    def decode_batch(
        self,
        tokens: Tensor | np.ndarray,
        lengths: Tensor | None = None,
        speaker: Tensor | None = None,
        num_codebooks: int | None = None,
    ) -> Tensor:
        """Decode tokens to waveforms.

        Padding does not change the decoded features, up to rounding. Rounding
        may make a vocoder choose different phases.

        Arguments
        ---------
        tokens : torch.Tensor or numpy.ndarray
            Tokens of any integer type, [B, T] (or [B, T, C]). The batch
            dimension may be omitted for a single utterance.
        lengths : torch.Tensor, optional
            Relative lengths, [B]; by default all 1.
        speaker : torch.Tensor, optional
            Speaker embeddings, [B, S] or [1, S], as returned by
            ``speaker_batch``; by default the average voice.
        num_codebooks : int, optional
            Number of leading codebooks of a residual quantizer to decode from;
            by default all codebooks in ``tokens``.

        Returns
        -------
        torch.Tensor
            Waveforms, [B, samples], zero at padding.

        Raises
        ------
        TypeError, ValueError
            If the tokens have an invalid type or shape, or too few codebooks,
            the batch is empty, or the number of speaker embeddings is wrong.

        Example
        -------
        >>> tokenizer = VQTokenizer.from_hparams("units")
        >>> tokenizer.decode_batch(torch.randint(512, (2, 50))).shape
        torch.Size([2, 16000])
        """
        tokens = torch.as_tensor(tokens)
        if tokens.is_floating_point() and tokens.numel():
            raise TypeError(
                f"Tokens must be integers, got {tokens.dtype}. Use "
                "decode_vectors for vectors."
            )
        shape = tuple(tokens.shape)
        tokens = self.unfold(tokens.to(self.device, torch.int64))
        if tokens.dim() == 2:
            tokens = tokens.unsqueeze(0)
        if tokens.dim() != 3:
            expected = "[B, T]" if self.is_folded else "[B, T, C]"
            raise ValueError(f"Tokens must be {expected}, got shape {shape}.")
        number = self.check_first(num_codebooks, tokens.shape[-1])
        tokens = tokens[..., 0 if self.is_folded else slice(number)]
        if isinstance(self.vocoder, UnitVocoder):
            speaker = self._voices(speaker, len(tokens))
            return self.vocoder(tokens, self._lengths(lengths), speaker)
        vectors = self.mods.quantizer.decode(tokens)
        return self.decode_vectors(vectors, lengths, speaker)

    @torch.no_grad()
    def decode_vectors(
        self,
        vectors: Tensor,
        lengths: Tensor | None = None,
        speaker: Tensor | None = None,
    ) -> Tensor:
        """Decode quantized vectors [B, T, H] to waveforms. See
        ``decode_batch``. Raises ValueError with a ``UnitVocoder``, which
        requires tokens."""
        if isinstance(self.vocoder, UnitVocoder):
            raise ValueError(
                f"{self.vocoder.source} takes tokens, not vectors: pass tokens "
                "to decode_batch, or use Griffin-Lim: use_vocoder(None)."
            )
        speaker = self._voices(speaker, len(vectors))
        lengths = self._lengths(lengths)
        if self.decodes_to_samples:
            return self.mods.decoder.generate(vectors, speaker, lengths)
        with self.autocast():
            vectors = vectors * frame_mask(vectors, lengths).unsqueeze(-1)
            features = self.mods.decoder(vectors, speaker, lengths)
        features, extract = features.float(), self.mods.features
        if self.vocoder is not None:
            return self.vocoder(extract.denormalize(features), lengths)
        hop = extract.hop_length
        return one_by_one(extract.inverse, features, lengths, hop)

    @torch.no_grad()
    def speaker_batch(
        self, wavs: Tensor | np.ndarray, wav_lens: Tensor | None = None
    ) -> Tensor:
        """Compute speaker embeddings [B, S] of waveforms. See ``encode_batch``.
        A model with a speaker table returns zeros, the average voice."""
        waveforms = self._as_batch(wavs, wav_lens)
        features = self.mods.features(*waveforms)
        with self.autocast():
            return voices(self.mods.speaker, waveforms, features).float()

    def tokenize(
        self,
        audio: Tensor | np.ndarray | Iterable[Tensor],
        chunk_seconds: float | None = 60.0,
    ) -> Tensor:
        """Encode audio of any length to tokens, in chunks.

        Chunks overlap by the receptive field of a token, so chunking does not
        change the tokens, up to rounding. On three hours of recorded speech,
        none of 562 987 tokens differed (CPU). A model whose ``span`` is None
        encodes the whole signal at once.

        Arguments
        ---------
        audio : torch.Tensor, numpy.ndarray or iterable of torch.Tensor
            One waveform as for ``encode_batch``, or its consecutive blocks,
            [samples] each.
        chunk_seconds : float, optional
            Chunk length in seconds; None encodes the whole signal at once.

        Returns
        -------
        torch.Tensor
            Tokens, [T] (or [T, C]).
        """
        return self._in_chunks(
            lambda wav: self.encode_batch(wav)[0][0], audio, chunk_seconds
        )

    def latents(
        self,
        audio: Tensor | np.ndarray | Iterable[Tensor],
        chunk_seconds: float | None = 60.0,
    ) -> Tensor:
        """Encode audio of any length to latents [T, H], in fp32 on the CPU.
        See ``tokenize`` for the arguments."""

        def encode(wav):
            """Encode a chunk."""
            return self.latents_batch(wav)[0][0].float().cpu()

        return self._in_chunks(encode, audio, chunk_seconds)

    def _in_chunks(self, encode, audio, chunk_seconds):
        check_seconds("chunk_seconds", chunk_seconds)
        if isinstance(audio, Tensor | np.ndarray):
            audio = [audio]
        blocks = map(_as_single, audio)
        if self.span is None or chunk_seconds is None:
            return encode(_cat(blocks))
        steps = max(1, round(chunk_seconds * self.token_rate))
        return _cat(in_pieces(encode, blocks, self.span, steps))

    def _voices(self, speaker, number):
        """Return a speaker embedding for each utterance of a batch."""
        if not number:
            raise ValueError("The batch is empty: give at least one utterance.")
        size = self.mods.speaker.output_dim
        speaker = torch.zeros(1, size) if speaker is None else speaker
        speaker = torch.as_tensor(speaker)
        if tuple(speaker.shape) not in {(1, size), (number, size)}:
            raise ValueError(
                f"Speaker embeddings must be [B, {size}] or [1, {size}], got "
                f"shape {tuple(speaker.shape)} for {number} utterances."
            )
        return speaker.to(self.device, torch.float32).expand(number, -1)

    def _lengths(self, lengths):
        if lengths is None:
            return None
        return _relative(lengths, "lengths").to(self.device, torch.float32)

    def _as_batch(self, wavs, wav_lens):
        """Return waveforms, zero at padding, and their relative lengths."""
        wavs = as_waveforms(wavs).to(self.device)
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs), dtype=torch.float32)
        wav_lens = _relative(wav_lens, "wav_lens")
        # fp32 is too coarse beyond 2**24 samples: 17 minutes at 16 kHz.
        is_fp32 = wav_lens.dtype == torch.float32
        precise = wav_lens.double() if is_fp32 else wav_lens
        wavs = torch.where(frame_mask(wavs.unsqueeze(-1), precise), wavs, 0.0)
        loudest = float(wavs.abs().amax()) if wavs.numel() else 0.0
        check_peak(loudest, "The waveforms hold")
        return wavs, wav_lens.to(self.device, torch.float32)


def _check_rates(hparams, features, encoder):
    """Raise HparamsError unless the sampling and token rates are valid, and
    agree with the strides of the modules, if known."""
    rate, tokens = hparams.sample_rate, hparams.token_rate
    is_number = isinstance(rate, int | float)
    if not (is_number and MIN_RATE <= rate <= MAX_RATE and rate % 1 == 0):
        raise HparamsError(
            f"sample_rate is {rate!r:.40}, but must be an integer from "
            f"{MIN_RATE} to {MAX_RATE}, in Hz."
        )
    hop = getattr(features, "hop_length", None)
    stride = getattr(encoder, "stride", None)
    is_valid = isinstance(tokens, int | float) and 0 < tokens < math.inf
    expected = "above 0"
    if isinstance(hop, int) and isinstance(stride, int):
        known = rate / hop / stride
        is_valid = is_valid and math.isclose(tokens, known, rel_tol=1e-6)
        expected = f"sample_rate / (hop_length * stride) = {known}"
    if not is_valid:
        raise HparamsError(
            f"token_rate is {tokens!r:.40}, but must be {expected}, in tokens "
            "per second."
        )


def _cat(parts):
    """Concatenate tensors. Raises ValueError if there are none."""
    parts = list(parts)
    if not parts:
        raise ValueError("There is no audio: give at least one block.")
    return torch.cat(parts)


def _relative(lengths, name):
    """Convert relative lengths to a tensor. Raises TypeError for integers."""
    lengths = torch.as_tensor(lengths)
    if not lengths.is_floating_point():
        raise TypeError(
            f"{name} must be relative to the longest of the batch: "
            f"floating-point numbers in [0, 1], got {lengths!r}."
        )
    return lengths


def _as_single(block):
    """Convert a block to one waveform [samples]."""
    wavs = as_waveforms(block)
    if len(wavs) != 1:
        raise ValueError(
            f"Expected one waveform [samples], got {len(wavs)}: use "
            "encode_batch for several."
        )
    return wavs[0]
