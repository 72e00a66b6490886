"""Replaceable parts of a tokenizer: vocoder, self-supervised encoder, number
of codebooks."""

import logging
import os
import pathlib

from speechbrain_vq._names import suggestion
from speechbrain_vq.hub.download import download_encoder
from speechbrain_vq.hub.folder import (
    HPARAMS,
    WEIGHTS,
    find_file,
    is_folder_name,
)
from speechbrain_vq.lobes.ssl import SSLFeatures
from speechbrain_vq.presets import BUNDLED_VOCODER

from .vocoder_loading import load_vocoder, load_vocoder_folder
from .vocoders import MelVocoder, UnitVocoder

logger = logging.getLogger(__name__)

# Accepted instead of the source of a vocoder.
GRIFFIN_LIM = "griffin-lim"


class PartsMixin:
    """Methods of ``VQTokenizer`` that select its vocoder, self-supervised
    encoder and number of codebooks."""

    def use_vocoder(
        self,
        vocoder: str | pathlib.Path | MelVocoder | UnitVocoder | None,
        **options,
    ) -> None:
        """Set the vocoder.

        Arguments
        ---------
        vocoder : path, str, MelVocoder, UnitVocoder or None
            A vocoder, or its source for ``load_vocoder``. None or
            ``griffin-lim`` selects Griffin-Lim.
        **options
            See ``load_vocoder``.

        Raises
        ------
        FileNotFoundError
            If there is no such vocoder.
        ValueError
            If the vocoder does not match the outputs of the model; the message
            names the differences.
        """
        if vocoder == GRIFFIN_LIM:
            vocoder = None
        if isinstance(vocoder, str | os.PathLike):
            hint = suggestion(str(vocoder), [GRIFFIN_LIM])
            if hint and not pathlib.Path(vocoder).exists():
                raise FileNotFoundError(f"No vocoder '{vocoder}'.{hint}")
            vocoder = load_vocoder(vocoder, **options)
        if vocoder is not None:
            vocoder.check(self)
            vocoder = vocoder.to(self.device)
        self.vocoder = vocoder

    def use_ssl_encoder(self, source: str | pathlib.Path, **options) -> None:
        """Load the self-supervised encoder that computes the model's features.

        The encoder has its own repository, which is downloaded only if the user
        names it here. The model's yaml pins the commit.

        Arguments
        ---------
        source : path or str
            Repository named in the model's yaml, such as
            ``microsoft/wavlm-base``, or a folder with a copy of it.
        **options
            See ``speechbrain_vq.hub.download.download_encoder``.

        Raises
        ------
        ValueError
            If the model has no such encoder, or was trained with another one.
        HubError
            If the files cannot be downloaded.
        """
        features = self.mods.features
        if not isinstance(features, SSLFeatures):
            raise ValueError(
                f"{self.source} has no self-supervised encoder: leave "
                "ssl_encoder out."
            )
        folder = pathlib.Path(source).expanduser()
        if not folder.is_dir():
            if str(source) != features.source:
                raise ValueError(
                    f"ssl_encoder={str(source)!r}: the model was trained with "
                    f"{features.source!r}. Give that name, or a folder with a "
                    "copy of it."
                )
            folder = download_encoder(
                features.source, features.revision, **options
            )
        features.load_encoder(folder)

    def use_codebooks(self, number: int | None) -> None:
        """Set the number of codebooks to encode with; fewer lower the bit rate.

        Arguments
        ---------
        number : int or None
            Number of leading codebooks of a residual quantizer; None uses all.

        Raises
        ------
        ValueError
            If the model has fewer codebooks, or is not residual and thus
            requires all of them.

        Example
        -------
        >>> import torch
        >>> from speechbrain_vq import VQTokenizer
        >>> tokenizer = VQTokenizer.from_hparams("speech")
        >>> tokenizer.use_codebooks(2)
        >>> tokenizer.encode_batch(torch.rand(1, 16000))[0].shape
        torch.Size([1, 50, 2])
        """
        total = self.mods.quantizer.num_codebooks
        self._used_codebooks = self.check_first(number, total)

    def check_first(self, number: int | None, total: int) -> int:
        """Return the number of codebooks to use out of ``total``, by default
        all. Raises ValueError if the quantizer cannot decode from that many."""
        number = total if number is None else number
        residual = self.mods.quantizer.composition == "residual"
        is_whole = isinstance(number, int) and not isinstance(number, bool)
        fits = is_whole and 1 <= number <= total
        if not fits or (number < total and not residual):
            allowed = f"1 to {total}" if residual else f"all {total}"
            raise ValueError(
                f"num_codebooks={number!r}: this model decodes from {allowed} of "
                "its codebooks."
            )
        return number

    def load_own_vocoder(self) -> MelVocoder | UnitVocoder | None:
        """Load the vocoder in the subfolder that the model's yaml names, or the
        bundled one if it supports the model's log-mels. Return None if neither
        applies."""
        name = getattr(self.hparams, "vocoder", None)
        if is_folder_name(name):
            # Raises if a file is missing or links out of the model folder.
            for file in (HPARAMS, WEIGHTS):
                find_file(self.location, f"{name}/{file}")
            folder = self.location / name
            return load_vocoder_folder(folder, str(folder))
        if name:
            logger.warning(
                "The yaml of %s names the vocoder %r. Vocoders outside the "
                "model folder are loaded only on request: give it as vocoder=. "
                "The default vocoder is used instead.",
                *(self.source, name),
            )
        features = self.mods.features
        # Self-supervised features without log-mels have mel = None.
        if self.decodes_to_samples or getattr(features, "mel", None) is None:
            return None
        vocoder = load_vocoder_folder(BUNDLED_VOCODER, "the bundled vocoder")
        return vocoder if vocoder.settings == features.settings else None
