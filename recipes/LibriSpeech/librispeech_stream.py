"""LibriSpeech through ``datasets``, row by row: either written to disk, so that
a later call continues where one stopped, or streamed into training.
"""

import json
import pathlib
import re
from collections.abc import Iterator

from tqdm import tqdm

from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.audio import (
    AudioError,
    cell_source,
    check_audio,
    read_audio,
)
from speechbrain_vq.dataio.dataset import random_start
from speechbrain_vq.dataio.streams import StreamLoader
from speechbrain_vq.training.resume import outlive_signals

HUB_NAME = "openslr/librispeech_asr"
# Configuration and split of each part on the Hub.
ON_THE_HUB = {
    "train-clean-100": ("clean", "train.100"),
    "train-clean-360": ("clean", "train.360"),
    "train-other-500": ("other", "train.500"),
    "dev-clean": ("clean", "validation"),
    "dev-other": ("other", "validation"),
    "test-clean": ("clean", "test"),
    "test-other": ("other", "test"),
}
HOW_TO_GET = (
    "The archives are at https://www.openslr.org/12; "
    f"--data_folder={HUB_NAME} takes them from the Hub"
)


def stream(
    source: str, part: str, folder: pathlib.Path
) -> Iterator[tuple[str, pathlib.Path, str]]:
    """Yield name, audio path and text of the utterances of a part, in the order
    of the data set. Only utterances that the caller takes are downloaded.

    ``datasets`` loads the source, a name on the Hub or a folder. The audio is
    written unchanged to ``audio/PART`` below ``folder``, and the state to resume
    from to ``audio/PART.jsonl``. Raises ValueError if the rows are not laid out
    as LibriSpeech's."""
    audio = folder / "audio" / part
    audio.mkdir(parents=True, exist_ok=True)
    about = {"source": source}
    notes = audio.with_suffix(".jsonl")
    finished = _already(notes, about, audio)
    for entry in finished:
        yield entry["id"], audio / f"{entry['id']}.flac", entry["text"]
    with atomic_write(notes) as partial:
        lines = [json.dumps(line) + "\n" for line in (about, *finished)]
        partial.write_text("".join(lines), encoding="utf-8")
    rows = _rows(source, part)
    if finished:
        rows.load_state_dict(finished[-1]["state"])
    with open(notes, "a", encoding="utf-8") as file:
        for row in tqdm(
            rows, part, initial=len(finished), unit="utt", disable=None
        ):
            _check(row, source)
            path, size = _write(row, audio)
            entry = {"id": row["id"], "text": row["text"], "bytes": size}
            entry["state"] = rows.state_dict()
            file.write(json.dumps(entry) + "\n")
            file.flush()
            yield row["id"], path, row["text"]


def open_stream(hparams: dict) -> StreamLoader:
    """Stream the training parts without a copy on disk, as batches of ``id`` and
    ``sig``, segments of the utterances of at most ``longest`` seconds.

    Raises FileNotFoundError if the parts cannot be loaded, and ValueError
    without ``hours`` or with more than one worker."""
    import datasets

    if not hparams["hours"]:
        raise ValueError(
            "--stream requires --hours, the amount of speech written to disk "
            "to compute the feature statistics."
        )
    source, rate = str(hparams["data_folder"]), hparams["sample_rate"]
    # Seconds of two frames
    shortest = 2 * hparams["hop_length"] / rate

    def item(row, times_read):
        _check(row, source)
        name, longest = row["id"], hparams["longest"]
        audio = cell_source(row["audio"], name)
        seconds = check_audio(audio, decode=False)
        if seconds < shortest:
            raise AudioError(f"{name}: shorter than {shortest:g} s.")
        start = random_start(name, times_read, seconds, longest)
        return {"id": name, "sig": read_audio(audio, rate, start, longest)}

    parts = hparams["train_parts"]
    return StreamLoader(
        datasets.concatenate_datasets([_rows(source, part) for part in parts]),
        item,
        hparams["batch_size"],
        hparams["stream_epoch"],
        seed=hparams["seed"],
        num_workers=hparams["num_workers"],
        worker_init_fn=outlive_signals if hparams["num_workers"] else None,
    )


def _already(notes: pathlib.Path, about: dict, audio: pathlib.Path) -> list:
    """Read the notes on utterances that were written completely."""
    lines = notes.read_text("utf-8").splitlines() if notes.is_file() else []
    if not lines or json.loads(lines[0]) != about:
        return []
    finished = []
    for line in lines[1:]:
        try:
            entry = json.loads(line)
        except ValueError:
            # A killed run left half a line.
            break
        path = audio / f"{entry['id']}.flac"
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            break
        finished.append(entry)
    return finished


def _rows(source: str, part: str):
    import datasets

    config, split = ON_THE_HUB[part]
    try:
        rows = datasets.load_dataset(
            source, config, split=split, streaming=True
        )
    except (OSError, ValueError) as error:
        where = f"There is no folder {source}. On the Hub, "
        if pathlib.Path(source).is_dir():
            where = ""
        raise FileNotFoundError(
            f"{where}{source} cannot be loaded by `datasets` ({config}, "
            f"{split}): {error}. {HOW_TO_GET}, and local folders are read as "
            "well."
        ) from error
    # Keep the encoded bytes, which soundfile decodes.
    return rows.cast_column("audio", datasets.Audio(decode=False))


def _check(row: dict, source: str) -> None:
    """Check that the id of a row names a file."""
    if not re.fullmatch(r"[\w-]+", str(row["id"])):
        raise ValueError(
            f"{source} has an utterance {row['id']!r}, which is not a file "
            "name: it is not laid out as openslr/librispeech_asr."
        )


def _write(row: dict, audio: pathlib.Path) -> tuple[pathlib.Path, int]:
    """Write the audio of a row if needed; return its path and size in bytes."""
    path = audio / f"{row['id']}.flac"
    data = row["audio"]["bytes"]
    if data is None:
        data = pathlib.Path(row["audio"]["path"]).read_bytes()
    if not path.exists() or path.stat().st_size != len(data):
        with atomic_write(path) as partial:
            partial.write_bytes(data)
    return path, len(data)
