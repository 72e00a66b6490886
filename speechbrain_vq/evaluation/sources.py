"""What is evaluated: a model on the audio of a manifest; see ``tokens`` for
those that were written before.

Authors
 * speechbrain_vq authors 2026
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from speechbrain_vq.dataio.audio import AudioError, check_audio

# Of what is said again, in seconds: warping needs the square.
LONGEST = 20.0


class Utterance(NamedTuple):
    """What is known of an utterance.

    Arguments
    ---------
    name : str
        Its key in the manifest.
    entry : dict
        What the manifest says of it.
    tokens : torch.Tensor
        [T, C].
    token_rate : float
        Rows of tokens a second.
    seconds : float
        How long it is.
    latents, codewords : torch.Tensor, optional
        Before and after the bottleneck, [T, D]; of models only.
    wav : torch.Tensor, optional
        Samples, [samples]; of models only, and of a long file the beginning.
    """

    name: str
    entry: dict
    tokens: torch.Tensor
    token_rate: float
    seconds: float
    latents: torch.Tensor | None = None
    codewords: torch.Tensor | None = None
    wav: torch.Tensor | None = None


class Model:
    """A model, run on the audio of a manifest.

    Arguments
    ---------
    tokenizer : VQTokenizer
        The model.
    batch_seconds : float
        Audio at a time, padding included.

    Example
    -------
    >>> source = Model(VQTokenizer.from_hparams("model"))  # doctest: +SKIP
    """

    def __init__(self, tokenizer, batch_seconds: float = 60.0):
        self.tokenizer, self.batch_seconds = tokenizer, batch_seconds
        self.codebook_size = tokenizer.codebook_size
        self.bad: dict[str, str] = {}

    def utterances(self, manifest: dict[str, dict]) -> Iterator[Utterance]:
        """Those of the manifest, in its order, a batch in memory; a longer
        file is encoded in pieces, of which the tokens are those of the whole
        (see ``VQTokenizer.tokenize``)."""
        from speechbrain_vq.dataio.audio import read_audio

        rate, batch, longest = self.tokenizer.sample_rate, {}, 0
        for name, entry in manifest.items():
            try:
                if self._is_long(entry["wav"]):
                    if batch:
                        yield from self._encoded(batch, manifest)
                        batch, longest = {}, 0
                    yield from self._in_pieces(name, entry)
                    continue
                wav = read_audio(entry["wav"], rate)
            except AudioError as error:
                self.bad[name] = str(error)
                continue
            longest = max(longest, len(wav))
            if batch and longest * (len(batch) + 1) > rate * self.batch_seconds:
                yield from self._encoded(batch, manifest)
                batch, longest = {}, len(wav)
            batch[name] = wav
        if batch:
            yield from self._encoded(batch, manifest)

    def beginning(self, utterance: Utterance) -> Utterance:
        """As much of it as is said again, 20 s."""
        if utterance.seconds <= LONGEST:
            return utterance
        frames = math.ceil(LONGEST * utterance.token_rate)
        return utterance._replace(
            tokens=utterance.tokens[:frames],
            latents=utterance.latents[:frames],
            codewords=utterance.codewords[:frames],
            wav=self._start(utterance.wav),
            seconds=LONGEST,
        )

    @property
    def own_phases(self) -> bool:
        """Whether a vocoder makes the phases of its waveforms."""
        generates = hasattr(self.tokenizer.mods.decoder, "generate")
        return self.tokenizer.vocoder is not None or not generates

    @property
    def vocoder(self) -> str:
        """What makes its waveforms."""
        if self.tokenizer.vocoder is not None:
            return self.tokenizer.vocoder.source
        if self.own_phases:
            return "Griffin-Lim"
        decoder = type(self.tokenizer.mods.decoder).__name__
        return f"none: {decoder} writes samples"

    @property
    def speakers(self) -> list[str]:
        """The voices that it knows by name; none if it hears them."""
        return getattr(self.tokenizer.mods.speaker, "names", [])

    def reconstruct(self, utterance: Utterance) -> torch.Tensor:
        """What the tokens keep of an utterance, in its own voice, [samples]."""
        speaker = utterance.entry.get("spk_id")
        return self.convert(utterance, utterance.wav, speaker)

    @torch.no_grad()
    def convert(
        self, utterance: Utterance, voice: torch.Tensor, speaker: str | None
    ) -> torch.Tensor:
        """What the tokens keep of an utterance, in the voice of a recording
        [samples], of which 20 s are heard, or of a speaker whose name the model
        knows, [samples]."""
        tokens = self.tokenizer.fold(utterance.tokens.unsqueeze(0))
        if speaker in self.speakers:
            embedding = self.tokenizer.mods.speaker([speaker])
        else:
            voice = self._start(voice).unsqueeze(0)
            embedding = self.tokenizer.speaker_batch(voice)
        return self.tokenizer.decode_batch(tokens, None, embedding)[0].cpu()

    def tokens(self, wav: torch.Tensor) -> torch.Tensor:
        """The tokens of samples [samples], [T, C]."""
        return _columns(self.tokenizer.encode_batch(wav[None])[0][0].cpu())

    def _start(self, wav):
        return wav[: round(LONGEST * self.tokenizer.sample_rate)]

    def _is_long(self, path):
        # One that may see everything is given everything at once.
        if self.tokenizer.span is None:
            return False
        return check_audio(path) > self.batch_seconds

    def _in_pieces(self, name, entry):
        from speechbrain_vq.dataio.audio import audio_blocks
        from speechbrain_vq.dataio.chunks import in_pieces

        rate, number, start = self.tokenizer.sample_rate, 0, []

        def blocks():
            nonlocal number
            for block in audio_blocks(entry["wav"], rate, self.batch_seconds):
                if number < LONGEST * rate:
                    start.append(block)
                number += len(block)
                yield block

        steps = max(1, round(self.batch_seconds * self.tokenizer.token_rate))
        try:
            pieces = list(
                in_pieces(self._piece, blocks(), self.tokenizer.span, steps)
            )
        except AudioError as error:
            self.bad[name] = str(error)
            return
        both = torch.cat(pieces)
        latents, tokens = both[:, : self._dim], both[:, self._dim :].long()
        folded = self.tokenizer.fold(tokens.unsqueeze(0))
        quantizer = self.tokenizer.mods.quantizer
        with torch.no_grad():
            vectors = quantizer.decode(folded.to(self.tokenizer.device))
        yield Utterance(
            name,
            entry,
            tokens,
            self.tokenizer.token_rate,
            number / rate,
            latents,
            vectors[0].float().cpu(),
            self._start(torch.cat(start)),
        )

    def _piece(self, wav):
        """Latents and tokens of samples, in a row, [T, D + C]; tokens are far
        below what a float has digits for."""
        tokens, _, latents = self._encode(wav.unsqueeze(0), None)
        self._dim = latents.shape[2]
        return torch.cat((latents[0], _columns(tokens[0]).float()), dim=1)

    @torch.no_grad()
    def _encode(self, wavs, lengths):
        """Tokens, their relative lengths, and latents."""
        latents = []
        # What the encoder says, on its way to the quantizer.
        hook = self.tokenizer.mods.encoder.register_forward_hook(
            lambda module, inputs, output: latents.append(output[0])
        )
        try:
            tokens, shares = self.tokenizer.encode_batch(wavs, lengths)
        finally:
            hook.remove()
        return tokens.cpu(), shares.cpu(), latents[0].float().cpu()

    @torch.no_grad()
    def _encoded(self, batch, manifest):
        wavs = torch.nn.utils.rnn.pad_sequence(
            list(batch.values()), batch_first=True
        )
        lengths = torch.tensor([len(wav) for wav in batch.values()])
        try:
            tokens, shares, latents = self._encode(
                wavs, lengths / wavs.shape[1]
            )
        except ValueError as error:
            self.bad |= dict.fromkeys(batch, str(error))
            return
        device, quantizer = self.tokenizer.device, self.tokenizer.mods.quantizer
        vectors = quantizer.decode(tokens.to(device)).float().cpu()
        frames = torch.round(shares * tokens.shape[1]).int().tolist()
        for i, (name, number) in enumerate(zip(batch, frames, strict=True)):
            yield Utterance(
                name,
                manifest[name],
                _columns(tokens[i, :number]).clone(),
                self.tokenizer.token_rate,
                len(batch[name]) / self.tokenizer.sample_rate,
                latents[i, :number],
                vectors[i, :number],
                batch[name],
            )


def _columns(tokens):
    return tokens.unsqueeze(1) if tokens.dim() == 1 else tokens
