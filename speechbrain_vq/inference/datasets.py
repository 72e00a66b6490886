"""A data set of audio in, the same with tokens out.

Authors
 * speechbrain_vq authors 2026
"""

import io
import logging
from typing import TYPE_CHECKING

from speechbrain_vq.dataio.audio import AudioError

from .files import audio_blocks
from .tokenizer import VQTokenizer

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def tokenize_dataset(
    dataset: "Dataset",
    tokenizer: VQTokenizer,
    audio_column: str = "audio",
    tokens_column: str = "tokens",
    **options,
) -> "Dataset":
    """Adds tokens to a data set of Hugging Face's ``datasets``.

    Audio is read with soundfile, from the bytes or the path in the column:
    torchcodec is not needed. The column itself stays as it was.

    Arguments
    ---------
    dataset : datasets.Dataset
        With a column of audio, or of paths.
    tokenizer : VQTokenizer
        The model.
    audio_column : str
        Its name.
    tokens_column : str
        The new column: tokens, [T] (or [T, C]); None where the audio cannot
        be used, which is also logged.
    **options
        Of ``Dataset.map``.

    Returns
    -------
    datasets.Dataset
        With the new column.

    Raises
    ------
    ValueError
        If there is no such column.
    """
    from datasets import (
        Audio,
        Features,
        Sequence,
        Value,
        concatenate_datasets,
    )

    if audio_column not in dataset.column_names:
        raise ValueError(
            f"The data set has no column '{audio_column}'; it has "
            f"{', '.join(dataset.column_names)}."
        )
    if tokens_column in dataset.column_names:
        raise ValueError(
            f"The data set has a column '{tokens_column}' already: give "
            "tokens_column another name, or remove it."
        )
    kind = Sequence(Value("int64"))
    if not (tokenizer.mods.quantizer.folds and tokenizer.num_codebooks == 1):
        kind = Sequence(kind)
    tokens = dataset.cast_column(audio_column, Audio(decode=False)).map(
        lambda row, index: {tokens_column: _tokens(row, index, tokenizer)},
        input_columns=[audio_column],
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features({tokens_column: kind}),
        **{"desc": "Tokens", **options},
    )
    return concatenate_datasets([dataset, tokens], axis=1)


def _tokens(row, index, tokenizer):
    name = f"row {index} ({row['path'] or 'bytes'})"
    source = row["path"] if row["bytes"] is None else io.BytesIO(row["bytes"])
    try:
        blocks = audio_blocks(source, tokenizer.sample_rate, name=name)
        return tokenizer.tokenize(blocks).tolist()
    except (AudioError, ValueError) as error:
        logger.warning("No tokens for %s: %s", name, error)
        return None
