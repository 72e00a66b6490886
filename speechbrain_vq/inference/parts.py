"""Choose the replaceable parts of a tokenizer: vocoder, self-supervised encoder,
number of codebooks."""

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

from .vocoder_loading import bundled_vocoder, load_vocoder, load_vocoder_folder
from .vocoders import MelVocoder, UnitVocoder

logger = logging.getLogger(__name__)

# Name of the vocoder that is no model.
GRIFFIN_LIM = "griffin-lim"


class PartsMixin:
    """Methods of ``VQTokenizer`` that choose its parts."""

    def use_vocoder(
        self,
        vocoder: str | pathlib.Path | MelVocoder | UnitVocoder | None,
        **options,
    ) -> None:
        """Choose the vocoder.

        Arguments
        ---------
        vocoder : path, str, MelVocoder, UnitVocoder or None
            A vocoder as ``load_vocoder`` returns it, or its arguments. None or
            ``griffin-lim``: Griffin-Lim.
        **options
            See ``load_vocoder``.

        Raises
        ------
        FileNotFoundError
            If there is no such vocoder.
        ValueError
            If its inputs are not the outputs of the model; the message names
            both.

        Example
        -------
        >>> tokenizer.use_vocoder("griffin-lim")  # doctest: +SKIP
        """
        if vocoder == GRIFFIN_LIM:
            vocoder = None
        if isinstance(vocoder, str | os.PathLike):
            hint = suggestion(str(vocoder), [GRIFFIN_LIM])
            if hint and not pathlib.Path(vocoder).exists():
                raise FileNotFoundError(f"No vocoder '{vocoder}'.{hint}")
            vocoder = load_vocoder(vocoder, **options)
        if vocoder is not None:
            if not isinstance(vocoder, MelVocoder | UnitVocoder):
                raise ValueError(
                    f"{vocoder!r} is no vocoder: give a folder, a model on "
                    "the Hub, or what load_vocoder gives."
                )
            vocoder.check(self)
            vocoder = vocoder.to(self.device)
        self.vocoder = vocoder

    def use_ssl_encoder(self, source: str | pathlib.Path, **options) -> None:
        """Load the self-supervised encoder that the model's features are of.

        It is another repository than the model's own, and so fetched only when
        it is named here; the commit is that of the model's yaml.

        Arguments
        ---------
        source : path or str
            Repository that the model's yaml names, such as
            ``microsoft/wavlm-base``, or a folder with a copy of it.
        **options
            See ``speechbrain_vq.hub.download.download_encoder``.

        Raises
        ------
        ValueError
            If the model has no such encoder, or was trained with another one.
        HubError
            If the Hub does not give the files.

        Example
        -------
        >>> tokenizer.use_ssl_encoder("microsoft/wavlm-base")  # doctest: +SKIP
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
        """Choose how many codebooks to encode with: fewer make fewer bits.

        Arguments
        ---------
        number : int or None
            Number of codebooks of a residual row, the first ones; None: all.

        Raises
        ------
        ValueError
            If the model has not so many, or none can be left out.

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
        """Return how many of the codebooks to use, by default all."""
        number = total if number is None else number
        residual = self.mods.quantizer.composition == "residual"
        if not 1 <= number <= total or (number < total and not residual):
            allowed = f"1 to {total}" if residual else f"all {total}"
            raise ValueError(
                f"num_codebooks={number}: this model decodes from {allowed} of "
                "its codebooks."
            )
        return number

    def load_own_vocoder(self) -> MelVocoder | UnitVocoder | None:
        """Load the vocoder beside the model's yaml, where that names one, else
        the bundled one, where it takes the model's log-mels."""
        name = getattr(self.hparams, "vocoder", None)
        if self.location is not None and is_folder_name(name):
            # Of the model's folder, not linked from elsewhere.
            for file in (HPARAMS, WEIGHTS):
                find_file(self.location, f"{name}/{file}")
            folder = self.location / name
            return load_vocoder_folder(folder, str(folder))
        if self.location is not None and name:
            logger.warning(
                "The yaml of %s names the vocoder %r. Another folder or "
                "repository is yours to choose: give it as vocoder=. Without "
                "it the default vocoder makes the waveforms.",
                *(self.source, name),
            )
        features = self.mods.features
        # Those of hidden states alone have no log-mels.
        if self.decodes_to_samples or getattr(features, "mel", None) is None:
            return None
        vocoder = bundled_vocoder()
        return vocoder if vocoder.settings == features.settings else None
