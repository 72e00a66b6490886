"""What is evaluated: a model on the audio of a manifest, or tokens that were
written before.

Authors
 * speechbrain_vq authors 2026
"""

import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from speechbrain_vq.dataio.check import AudioError


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
        Samples, [samples]; of models only.
    """

    name: str
    entry: dict
    tokens: torch.Tensor
    token_rate: float
    seconds: float
    latents: torch.Tensor | None = None
    codewords: torch.Tensor | None = None
    wav: torch.Tensor | None = None


class TokenFile:
    """Tokens as ``speechbrain-vq tokenize`` writes them, for the utterances of
    a manifest, which are known by their path, or else by its last part.

    Arguments
    ---------
    path : path
        The jsonl file.

    Example
    -------
    >>> source = TokenFile("tokens.jsonl")  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.codebook_size = path, None
        self.bad: dict[str, str] = {}

    def utterances(self, manifest: dict[str, dict]) -> Iterator[Utterance]:
        """Those of the manifest, in the order of the file."""
        from speechbrain_vq.inference.bulk import read_lines

        names = {}
        for name, entry in manifest.items():
            wav = pathlib.Path(entry["wav"])
            names.setdefault(wav.stem, []).append(name)
            names[str(wav.resolve())] = [name]
        left = dict.fromkeys(manifest)
        for line in read_lines(self.path):
            path = pathlib.Path(line["path"])
            found = names.get(str(path.resolve())) or names.get(path.stem, [])
            if len(found) != 1 or found[0] not in left:
                continue
            del left[found[0]]
            tokens = torch.tensor(line["tokens"], dtype=torch.long)
            yield Utterance(
                found[0],
                manifest[found[0]],
                _columns(tokens),
                line["token_rate"],
                line["num_samples"] / line["sample_rate"],
            )
        self.bad = dict.fromkeys(left, f"no tokens in {self.path}")


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
        """Those of the manifest, in its order, a batch in memory."""
        from speechbrain_vq.dataio.audio import read_audio

        rate, batch, longest = self.tokenizer.sample_rate, {}, 0
        for name, entry in manifest.items():
            try:
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
        [samples], or of a speaker whose name the model knows, [samples]."""
        tokens = utterance.tokens.unsqueeze(0)
        if tokens.shape[2] == 1 and self._flat:
            tokens = tokens.squeeze(2)
        if speaker in self.speakers:
            embedding = self.tokenizer.mods.speaker([speaker])
        else:
            embedding = self.tokenizer.speaker_batch(voice.unsqueeze(0))
        return self.tokenizer.decode_batch(tokens, None, embedding)[0].cpu()

    def tokens(self, wav: torch.Tensor) -> torch.Tensor:
        """The tokens of samples [samples], [T, C]."""
        return _columns(self.tokenizer.encode_batch(wav[None])[0][0].cpu())

    @torch.no_grad()
    def _encoded(self, batch, manifest):
        wavs = torch.nn.utils.rnn.pad_sequence(
            list(batch.values()), batch_first=True
        )
        lengths = torch.tensor([len(wav) for wav in batch.values()])
        latents = []
        # What the encoder says, on its way to the quantizer.
        hook = self.tokenizer.mods.encoder.register_forward_hook(
            lambda module, inputs, output: latents.append(output[0])
        )
        try:
            tokens, shares = self.tokenizer.encode_batch(
                wavs, lengths / wavs.shape[1]
            )
        except ValueError as error:
            self.bad |= dict.fromkeys(batch, str(error))
            return
        finally:
            hook.remove()
        vectors = self.tokenizer.mods.quantizer.decode(tokens).float().cpu()
        found, tokens = latents[0].float().cpu(), tokens.cpu()
        self._flat = tokens.dim() == 2
        frames = torch.round(shares.cpu() * tokens.shape[1]).int().tolist()
        for i, (name, number) in enumerate(zip(batch, frames, strict=True)):
            yield Utterance(
                name,
                manifest[name],
                _columns(tokens[i, :number]).clone(),
                self.tokenizer.token_rate,
                len(batch[name]) / self.tokenizer.sample_rate,
                found[i, :number],
                vectors[i, :number],
                batch[name],
            )


def _columns(tokens):
    return tokens.unsqueeze(1) if tokens.dim() == 1 else tokens
