"""Interfaces of other tokenizers: DASB's, and EnCodec's through an adapter.

Here tokens are [B, N, K], with N tokens from K codebooks, even if K is 1. H is
the dimension of a codeword.
"""

import torch
from torch import Tensor

from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.nnet.search import nearest


class CodecMixin:
    """Interface of DASB's tokenizers: ``sig_to_tokens``, ``tokens_to_sig``,
    ``get_pretrained_embeddings`` and the methods that DASB's
    ``get_silence_token`` calls.

    The class must have ``encode_batch`` and ``decode_batch``, and a quantizer
    in ``mods``.
    """

    # Number of codebooks set by use_codebooks; None uses all.
    _used_codebooks = None
    # Attributes of version 0.1 that moved to EncodecAdapter.
    _MOVED = frozenset(
        "encode decode num_heads num_tokens emb_dim vocabulary".split()
    )

    def __getattr__(self, name):
        if name in self._MOVED:
            raise AttributeError(
                f"'{name}' belongs to EnCodec's interface: use "
                f"EncodecAdapter(tokenizer).{name}."
            )
        return super().__getattr__(name)

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks to encode with, K. See ``use_codebooks``."""
        return self._used_codebooks or self.mods.quantizer.num_codebooks

    @property
    def vocab_size(self) -> int:
        """Number of codewords in each codebook, C."""
        return self.mods.quantizer.codebook_size

    @property
    def is_folded(self) -> bool:
        """Whether tokens of ``encode_batch`` lack the codebook dimension."""
        quantizer = self.mods.quantizer
        return quantizer.folds and quantizer.num_codebooks == 1

    def sig_to_tokens(
        self,
        signal: Tensor,
        lengths: Tensor | None = None,
        num_codebooks: int | list[int] | None = None,
        **kwargs,
    ) -> Tensor:
        """Encode waveforms to tokens.

        Arguments
        ---------
        signal : torch.Tensor
            Waveforms, [B, T].
        lengths : torch.Tensor, optional
            Relative lengths, [B]. They also hold for the tokens, to within one
            token; ``encode_batch`` returns the exact lengths.
        num_codebooks : int or list, optional
            Number of codebooks, or a list of their indices; all by default.
        **kwargs
            Arguments of other tokenizers, ignored.

        Returns
        -------
        torch.Tensor
            Tokens, [B, N, K].
        """
        tokens, _ = self.encode_batch(signal, lengths)
        return self.unfold(tokens)[..., self._books(num_codebooks)]

    def tokens_to_sig(
        self, tokens: Tensor, lengths: Tensor | None = None, **kwargs
    ) -> Tensor:
        """Decode tokens [B, N, K] to waveforms [B, T] in the average voice.

        With a residual quantizer, the last codebooks may be missing. Arguments
        of other tokenizers' methods are ignored.
        """
        residual = self.mods.quantizer.composition == "residual"
        if not (residual and 0 < tokens.shape[-1] < self.num_codebooks):
            tokens = self.fold(tokens)
        return self.decode_batch(tokens, lengths)

    def get_pretrained_embeddings(
        self,
        vocab_size: int | None = None,
        num_codebooks: int | list[int] | None = None,
        **kwargs,
    ) -> Tensor:
        """Return the codewords of all codebooks in one table, [K * C, H].

        Arguments
        ---------
        vocab_size : int, optional
            Number of codewords from each codebook; all by default.
        num_codebooks : int or list, optional
            See ``sig_to_tokens``.
        **kwargs
            Arguments of other tokenizers, ignored.

        Returns
        -------
        torch.Tensor
            A copy of the codewords, one codebook after another.
        """
        size = self.vocab_size if vocab_size is None else vocab_size
        if not 0 < size <= self.vocab_size:
            raise ValueError(
                f"The codebooks have {self.vocab_size} codewords each, not "
                f"vocab_size={vocab_size}."
            )
        books = self._books(num_codebooks)
        return self._codewords[books, :size].flatten(0, 1).clone()

    @torch.no_grad()
    def embeddings(self, tokens: Tensor) -> Tensor:
        """Look up the codewords [B, N, K, H] of tokens [B, N, K]. The last
        codebooks may be missing.

        For a residual quantizer, their sum over K is the quantized latent. For
        product quantization, it is their concatenation.
        """
        tokens = tokens.to(self.device)
        books = torch.arange(tokens.shape[-1], device=tokens.device)
        return self._codewords[books, tokens]

    def forward(
        self, wavs: Tensor, wav_lens: Tensor | None = None, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Encode waveforms [B, T] of relative lengths [B] to tokens [B, N, K]
        and their codewords [B, N, K, H]. ``kwargs`` are arguments of
        ``sig_to_tokens``."""
        tokens = self.sig_to_tokens(wavs, wav_lens, **kwargs)
        books = torch.tensor(self._books(kwargs.get("num_codebooks")))
        return tokens, self._codewords[books, tokens]

    def fold(self, tokens: Tensor) -> Tensor:
        """Convert tokens [B, N, K] to the shape that ``decode_batch`` takes,
        [B, N] if ``is_folded``."""
        if tokens.dim() != 3 or tokens.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"Tokens of {self.num_codebooks} codebooks are [B, N, "
                f"{self.num_codebooks}], got {list(tokens.shape)}."
            )
        return tokens.squeeze(-1) if self.is_folded else tokens

    def unfold(self, tokens: Tensor) -> Tensor:
        """Add the codebook dimension to tokens if ``is_folded``."""
        return tokens.unsqueeze(-1) if self.is_folded else tokens

    @property
    def _codewords(self):
        """Codewords that tokens decode to, [K, C, H]."""
        return self.mods.quantizer.embedding.table.detach()

    def _books(self, num_codebooks):
        """Convert a number of codebooks, or a list of indices, to indices."""
        if num_codebooks is None:
            num_codebooks = self.num_codebooks
        is_number = isinstance(num_codebooks, int)
        books = list(range(num_codebooks) if is_number else num_codebooks)
        if not books or not all(0 <= b < self.num_codebooks for b in books):
            raise ValueError(
                f"num_codebooks={num_codebooks}: give a number from 1 to "
                f"{self.num_codebooks}, all codebooks of the tokenizer, or a "
                "list of indices counted from 0."
            )
        return books


class EncodecAdapter(torch.nn.Module):
    """Adapter that gives a tokenizer the interface of SpeechBrain's
    ``speechbrain.integrations.huggingface.encodec.Encodec``.

    Arguments
    ---------
    tokenizer : VQTokenizer
        The tokenizer to adapt.

    Example
    -------
    >>> from speechbrain_vq import VQTokenizer
    >>> from speechbrain_vq.inference import EncodecAdapter
    >>> tokenizer = VQTokenizer.from_hparams("units")
    >>> encodec = EncodecAdapter(tokenizer)
    >>> tokens, codewords = encodec.encode(torch.zeros(1, 16000))
    >>> encodec.decode(tokens).shape
    torch.Size([1, 1, 16000])
    """

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.sample_rate = tokenizer.sample_rate
        self.num_tokens = tokenizer.vocab_size
        self.emb_dim = self.vocabulary.shape[-1]

    @property
    def num_heads(self) -> int:
        """Number of codebooks in use, K."""
        return self.tokenizer.num_codebooks

    @property
    def vocabulary(self) -> Tensor:
        """Codewords of the codebooks in use, [K, C, H]."""
        return self.tokenizer._codewords[: self.tokenizer.num_codebooks]

    def encode(
        self, inputs: Tensor, length: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode waveforms [B, T] or [B, 1, T] of relative lengths [B] to
        tokens [B, N, K] and their codewords [B, N, K, H]."""
        return self.tokenizer(inputs, length)

    forward = encode

    def decode(self, tokens: Tensor, length: Tensor | None = None) -> Tensor:
        """Decode tokens [B, N, K] to waveforms [B, 1, T] in the average
        voice."""
        return self.tokenizer.tokens_to_sig(tokens, length).unsqueeze(1)

    def tokens(self, emb: Tensor, length: Tensor | None = None) -> Tensor:
        """Return the tokens [B, N, K] whose codewords are nearest to vectors
        [B, N, K, H]; 0 at padding, given relative lengths [B]."""
        books = zip(emb.unbind(2), self.vocabulary, strict=True)
        tokens = [nearest(vectors, words) for vectors, words in books]
        return torch.stack(tokens, dim=2) * frame_mask(emb, length)

    def decode_emb(self, emb: Tensor, length: Tensor | None = None) -> Tensor:
        """Decode vectors [B, N, K, H] to waveforms [B, 1, T]; see ``tokens``."""
        return self.decode(self.tokens(emb), length)

    def embeddings(self, tokens: Tensor) -> Tensor:
        """Look up the codewords of tokens. See ``CodecMixin.embeddings``."""
        return self.tokenizer.embeddings(tokens)
