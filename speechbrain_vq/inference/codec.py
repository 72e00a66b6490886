"""The two faces that others know tokenizers by: DASB's and EnCodec's.

Tokens have a dimension for the codebooks here even where there is one:
[B, N, K], with N tokens of K codebooks. H is the size of a codeword.

Authors
 * speechbrain_vq authors 2026
"""

import torch


class CodecMixin:
    """DASB's ``sig_to_tokens``, ``tokens_to_sig`` and
    ``get_pretrained_embeddings``, and ``encode``, ``decode`` and
    ``embeddings`` as SpeechBrain's EnCodec has them.

    For a class with ``encode_batch`` and ``decode_batch``, and a quantizer in
    ``mods``.
    """

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks, K."""
        return self.mods.quantizer.num_codebooks

    @property
    def num_heads(self) -> int:
        """The same, by EnCodec's name."""
        return self.num_codebooks

    @property
    def vocab_size(self) -> int:
        """Number of different tokens of each codebook, C."""
        return self.mods.quantizer.codebook_size

    @property
    def num_tokens(self) -> int:
        """The same, by EnCodec's name."""
        return self.vocab_size

    @property
    def emb_dim(self) -> int:
        """Size of a codeword, H."""
        return self.mods.quantizer.codebook_dim

    @property
    def vocabulary(self) -> torch.Tensor:
        """The codewords, [K, C, H]."""
        return self.mods.quantizer.codebook.detach()

    def sig_to_tokens(
        self,
        signal: torch.Tensor,
        lengths: torch.Tensor | None = None,
        num_codebooks: int | list[int] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Waveforms to tokens (DASB).

        Arguments
        ---------
        signal : torch.Tensor
            Waveforms, [B, T].
        lengths : torch.Tensor, optional
            Relative lengths, [B]. They hold for the tokens too, to within one
            at the end; ``encode_batch`` gives them exactly.
        num_codebooks : int or list, optional
            The first so many codebooks, or which; all by default.
        **kwargs
            What other tokenizers take; not looked at.

        Returns
        -------
        torch.Tensor
            Tokens, [B, N, K].

        Raises
        ------
        ValueError
            If there are not so many codebooks.
        """
        tokens, _ = self.encode_batch(signal, lengths)
        return _unfold(tokens)[..., self._books(num_codebooks)]

    def tokens_to_sig(self, tokens: torch.Tensor, **kwargs) -> torch.Tensor:
        """Tokens to waveforms (DASB).

        Arguments
        ---------
        tokens : torch.Tensor
            Tokens, [B, N, K]; of a residual quantizer also those of the first
            codebooks only.
        **kwargs
            What other tokenizers take; not looked at.

        Returns
        -------
        torch.Tensor
            Waveforms, [B, T], in the average voice.
        """
        return self.decode(tokens).squeeze(1)

    def get_pretrained_embeddings(
        self,
        vocab_size: int | None = None,
        num_codebooks: int | list[int] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """The codewords as rows of one table (DASB).

        Arguments
        ---------
        vocab_size : int, optional
            The first so many of each codebook; all by default.
        num_codebooks : int or list, optional
            As for ``sig_to_tokens``.
        **kwargs
            What other tokenizers take; not looked at.

        Returns
        -------
        torch.Tensor
            Codewords, [K * C, H], codebook after codebook.

        Raises
        ------
        ValueError
            If there are not so many.
        """
        size = self.vocab_size if vocab_size is None else vocab_size
        if not 0 < size <= self.vocab_size:
            raise ValueError(
                f"The codebooks have {self.vocab_size} codewords each, not "
                f"vocab_size={vocab_size}."
            )
        table = self.vocabulary[self._books(num_codebooks), :size]
        return table.flatten(0, 1).clone()

    def encode(
        self, inputs: torch.Tensor, length: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms to tokens and their codewords (EnCodec).

        Arguments
        ---------
        inputs : torch.Tensor
            Waveforms, [B, T].
        length : torch.Tensor, optional
            Relative lengths, [B].

        Returns
        -------
        tuple
            Tokens [B, N, K] and codewords [B, N, K, H].
        """
        tokens = self.sig_to_tokens(inputs, length)
        return tokens, self.embeddings(tokens)

    @torch.no_grad()
    def decode(
        self, tokens: torch.Tensor, length: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Tokens to waveforms (EnCodec).

        Arguments
        ---------
        tokens : torch.Tensor
            As for ``tokens_to_sig``.
        length : torch.Tensor, optional
            Relative lengths, [B].

        Returns
        -------
        torch.Tensor
            Waveforms, [B, 1, T].
        """
        tokens = tokens.to(self.device)
        if self._are_prefix(tokens):
            vectors = self.embeddings(tokens).sum(2)
            vectors = self.mods.quantizer.project_back(vectors)
            wavs = self.decode_vectors(vectors, length)
        else:
            wavs = self.decode_batch(self.fold(tokens), length)
        return wavs.unsqueeze(1)

    @torch.no_grad()
    def embeddings(self, tokens: torch.Tensor) -> torch.Tensor:
        """The codewords of tokens (EnCodec).

        Arguments
        ---------
        tokens : torch.Tensor
            Tokens, [B, N, K], or of the first codebooks only.

        Returns
        -------
        torch.Tensor
            Codewords, [B, N, K, H]. Of a residual quantizer, their sum over K
            is what it codes; of a product codebook, one after the other.
        """
        tokens = tokens.to(self.device)
        books = torch.arange(tokens.shape[-1], device=tokens.device)
        return self.vocabulary[books, tokens]

    def fold(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens as ``decode_batch`` takes them.

        Arguments
        ---------
        tokens : torch.Tensor
            Tokens, [B, N, K].

        Returns
        -------
        torch.Tensor
            The same, or [B, N] where the quantizer has them without a
            dimension for its one codebook.

        Raises
        ------
        ValueError
            If they are of another number of codebooks.
        """
        if tokens.dim() != 3 or tokens.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"Tokens of {self.num_codebooks} codebooks are [B, N, "
                f"{self.num_codebooks}], got {list(tokens.shape)}."
            )
        folded = self.num_codebooks == 1 and self.mods.quantizer.folds
        return tokens.squeeze(-1) if folded else tokens

    def _are_prefix(self, tokens):
        """Whether they are of the first codebooks of a row."""
        residual = self.mods.quantizer.composition == "residual"
        return residual and 0 < tokens.shape[-1] < self.num_codebooks

    def _books(self, wanted):
        """Which codebooks, as a list."""
        if wanted is None:
            wanted = self.num_codebooks
        books = list(range(wanted)) if isinstance(wanted, int) else list(wanted)
        if not books or not all(0 <= b < self.num_codebooks for b in books):
            raise ValueError(
                f"num_codebooks={wanted}, but the tokenizer has "
                f"{self.num_codebooks} codebooks: give a number from 1 to "
                f"that, or a list of which, counted from 0."
            )
        return books


def _unfold(tokens):
    return tokens if tokens.dim() == 3 else tokens.unsqueeze(-1)
