"""Speech to tokens and back with a pretrained quantizer.

Authors
 * speechbrain_vq authors 2026
"""

import json
import pathlib
from typing import Any

import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from speechbrain.inference.interfaces import Pretrained

from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.nnet.masks import frame_mask

CONFIG, HPARAMS = "config.json", "hyperparams.yaml"
WEIGHTS = "model.safetensors"


class VQTokenizer(Pretrained):
    """A pretrained model that turns speech into tokens and tokens into speech.

    Its modules are ``features`` (waveforms to features and back), ``encoder``,
    ``quantizer``, ``speaker`` (an embedding of whose voice it is) and
    ``decoder``, as in ``recipes/MiniSpeech/unit-discovery``.

    Arguments
    ---------
    modules, hparams, run_opts, freeze_params
        See SpeechBrain's ``Pretrained``.

    Example
    -------
    >>> tokenizer = VQTokenizer.from_hparams("results/model")  # doctest: +SKIP
    >>> tokens = tokenizer.encode_file("speech.wav")  # doctest: +SKIP
    >>> tokenizer.reconstruct_file("speech.wav", "out.wav")  # doctest: +SKIP
    """

    HPARAMS_NEEDED = ["sample_rate", "token_rate"]
    MODULES_NEEDED = ["features", "encoder", "quantizer", "speaker", "decoder"]

    @classmethod
    def from_hparams(
        cls, source: str | pathlib.Path, **kwargs: Any
    ) -> "VQTokenizer":
        """Loads the folder that ``export_pretrained`` wrote.

        Arguments
        ---------
        source : path
            The folder.
        **kwargs
            ``run_opts`` and ``freeze_params`` of ``Pretrained``.

        Returns
        -------
        VQTokenizer
            The model, in evaluation mode.

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        ValueError
            If the weights are not those of the model that the yaml describes.
        """
        folder = pathlib.Path(source)
        for name in (HPARAMS, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"'{source}' is not a folder with a pretrained model: "
                    f"there is no {name} in it."
                )
        with open(folder / HPARAMS, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file)
        modules = hparams["modules"]
        missing = [m for m in cls.MODULES_NEEDED if m not in modules]
        if missing:
            raise ValueError(
                f"{folder / HPARAMS} lacks the modules {', '.join(missing)}."
            )
        load_weights(modules, folder / WEIGHTS)
        return cls(modules=modules, hparams=hparams, **kwargs)

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.hparams.sample_rate

    @property
    def token_rate(self) -> float:
        """Tokens a second."""
        return self.hparams.token_rate

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return self.mods.quantizer.codebook_size

    @torch.no_grad()
    def encode_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms to tokens; an utterance has the same ones alone and in a
        padded batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms, [B, samples], zero beyond their lengths.
        wav_lens : torch.Tensor, optional
            Relative lengths, [B]; absent: all of it.

        Returns
        -------
        tuple
            Tokens [B, T] (or [B, T, C] for C codebooks), 0 at padding, and
            their relative lengths [B].
        """
        features, lengths = self._features(wavs, wav_lens)
        latents, lengths = self.mods.encoder(features, lengths)
        tokens = self.mods.quantizer.encode(latents, lengths)
        mask = frame_mask(latents, lengths)
        mask = mask.view(mask.shape + (1,) * (tokens.dim() - 2))
        return tokens * mask, lengths

    @torch.no_grad()
    def decode_batch(
        self,
        tokens: torch.Tensor,
        lengths: torch.Tensor | None = None,
        speaker: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens to waveforms.

        Arguments
        ---------
        tokens : torch.Tensor
            Tokens, [B, T] (or [B, T, C]).
        lengths : torch.Tensor, optional
            Relative lengths, [B]; absent: all of it.
        speaker : torch.Tensor, optional
            Whose voice, [B, S], as ``speaker_batch`` gives it; absent: the
            average one.

        Returns
        -------
        torch.Tensor
            Waveforms, [B, samples].
        """
        tokens = tokens.to(self.device)
        if speaker is None:
            size = self.mods.speaker.output_dim
            speaker = torch.zeros(len(tokens), size, device=self.device)
        vectors = self.mods.quantizer.decode(tokens)
        mask = frame_mask(vectors, lengths).unsqueeze(-1)
        features = self.mods.decoder(vectors * mask, speaker, lengths)
        return self.mods.features.inverse(features)

    @torch.no_grad()
    def speaker_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Whose voice the waveforms [B, samples] have, [B, S]."""
        return self.mods.speaker(*self._features(wavs, wav_lens))

    def encode_file(self, path: str | pathlib.Path) -> torch.Tensor:
        """The tokens of an audio file of any rate and number of channels.

        Arguments
        ---------
        path : path
            The file.

        Returns
        -------
        torch.Tensor
            Tokens, [T] (or [T, C]).
        """
        wav = read_audio(path, self.sample_rate)
        return self.encode_batch(wav.unsqueeze(0))[0][0]

    def reconstruct_file(
        self, path: str | pathlib.Path, output: str | pathlib.Path
    ) -> torch.Tensor:
        """Writes what the tokens keep of an audio file, in its own voice.

        Arguments
        ---------
        path : path
            The file to read.
        output : path
            The wav file to write.

        Returns
        -------
        torch.Tensor
            The tokens, [T] (or [T, C]).
        """
        wavs = read_audio(path, self.sample_rate).unsqueeze(0)
        tokens, lengths = self.encode_batch(wavs)
        speaker = self.speaker_batch(wavs)
        decoded = self.decode_batch(tokens, lengths, speaker)[0].cpu()
        soundfile.write(str(output), decoded.clamp(-1, 1), self.sample_rate)
        return tokens[0]

    def forward(self, wavs, wav_lens=None):
        """See ``encode_batch``."""
        return self.encode_batch(wavs, wav_lens)

    def _features(self, wavs, wav_lens):
        wavs = wavs.to(self.device)
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs))
        return self.mods.features(wavs, wav_lens.to(self.device))


def load_weights(
    modules: dict[str, torch.nn.Module], path: pathlib.Path
) -> None:
    """Loads weights into modules, all of them and no others.

    Arguments
    ---------
    modules : dict
        Modules by name.
    path : path
        A safetensors file; its tensors are named ``module.tensor``.

    Raises
    ------
    ValueError
        If the file is damaged, or a tensor is missing, unknown or of another
        shape; the message names it.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    try:
        torch.nn.ModuleDict(modules).load_state_dict(
            {**_extra_states(modules), **weights}
        )
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the model of {HPARAMS} beside it: {error}"
        ) from error


def _extra_states(modules):
    """What safetensors does not hold; it stays as the yaml made it."""
    state = torch.nn.ModuleDict(modules).state_dict()
    return {k: v for k, v in state.items() if k.endswith("_extra_state")}


def read_config(folder: str | pathlib.Path) -> dict:
    """What ``export_pretrained`` noted of a model: sizes, rates, training."""
    text = (pathlib.Path(folder) / CONFIG).read_text(encoding="utf-8")
    return json.loads(text)
