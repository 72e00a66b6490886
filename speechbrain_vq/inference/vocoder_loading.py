"""Load vocoders from a folder or the Hub, without running their code."""

import pathlib
from typing import Any

from speechbrain.lobes.models.HifiGAN import (
    HifiganGenerator,
    UnitHifiganGenerator,
)

from speechbrain_vq.hub.download import download
from speechbrain_vq.hub.folder import WEIGHTS, find_file
from speechbrain_vq.hub.load import load_named
from speechbrain_vq.lobes.vocoder import SourceFilterVocoder

from .vocoders import HifiGAN, MelVocoder, UnitVocoder

# Weights file of SpeechBrain's vocoders.
CHECKPOINT = "generator.ckpt"
# Settings of SpeechBrain's recipes, which the yamls of its vocoders lack.
_USUAL = {"n_fft": 1024, "win_length": 1024, "mel_fmin": 0, "mel_fmax": 8000}
# Maximum number of frames of padding at each end; SpeechBrain's vocoders use 5.
MAX_PADDING = 100
# Settings of the log-mels of SpeechBrain's published vocoders.
PUBLISHED = {
    f"speechbrain/tts-hifigan-{name}": {"sample_rate": rate, **_USUAL}
    for name, rate in (
        ("libritts-16kHz", 16000),
        ("libritts-22050Hz", 22050),
        ("ljspeech", 22050),
    )
}


def load_vocoder(
    source: str | pathlib.Path, **options: Any
) -> MelVocoder | UnitVocoder:
    """Load a vocoder of log-mels or units, without running code from its
    folder.

    Arguments
    ---------
    source : path or str
        Folder, or id of a model on the Hub, such as
        ``speechbrain/tts-hifigan-libritts-16kHz``. It must contain
        ``model.safetensors`` or ``generator.ckpt``, and a ``hyperparams.yaml``
        with the key ``generator``: a SpeechBrain HiFi-GAN or a
        ``SourceFilterVocoder``.
    **options
        ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and
        ``force_download``, as in ``VQTokenizer.from_hparams``.

    Returns
    -------
    MelVocoder or UnitVocoder
        The vocoder, on the CPU, in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no such model, or one of its files is missing.
    ValueError
        If the folder has no such vocoder, or would run code.
    """
    folder = download(source, weights=(WEIGHTS, CHECKPOINT), **options)
    return load_vocoder_folder(folder, str(source))


def load_vocoder_folder(
    folder: pathlib.Path, source: str
) -> MelVocoder | UnitVocoder:
    """Load the vocoder in a folder; see ``load_vocoder``. ``source`` is its
    name in ``PUBLISHED`` and in messages."""
    is_safetensors = (folder / WEIGHTS).is_file()
    weights = find_file(folder, WEIGHTS if is_safetensors else CHECKPOINT)
    hparams, generator = load_named(folder, "generator", weights)
    if isinstance(generator, SourceFilterVocoder):
        generator.eval().requires_grad_(False)
        return MelVocoder(generator, source=source)
    if not isinstance(generator, HifiganGenerator):
        raise ValueError(
            f"'{source}' is neither a SpeechBrain HiFi-GAN nor a "
            "SourceFilterVocoder: the generator in its yaml is "
            f"{type(generator).__name__}."
        )
    generator.remove_weight_norm()
    generator.eval().requires_grad_(False)
    if isinstance(generator, UnitHifiganGenerator):
        return UnitVocoder(generator, hparams, source)
    stated = PUBLISHED.get(source, hparams)
    names = ("sample_rate", "n_fft", "win_length", "mel_fmin", "mel_fmax")
    settings = {n: stated[n] for n in names if stated.get(n) is not None}
    for name, value in settings.items():
        if not isinstance(value, int | float):
            raise ValueError(
                f"The yaml of '{source}' has {name}={value!r}, which is not a "
                "number."
            )
    padding = generator.inference_padding
    if not isinstance(padding, int) or not 0 <= padding <= MAX_PADDING:
        raise ValueError(
            f"The yaml of '{source}' has inference_padding={padding!r}: it "
            f"must be an integer number of frames from 0 to {MAX_PADDING}."
        )
    return HifiGAN(generator, settings, source)
