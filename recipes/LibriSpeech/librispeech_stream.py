"""LibriSpeech through ``datasets``, row by row: what has come is kept, and a
later call goes on after it; or nothing is kept, and training goes on.
"""

import importlib.metadata
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
# Its configurations and splits on the Hub.
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
    """Yield name, path of the audio and text of the utterances of a part, in the
    order of the data set, fetching no more than are asked for.

    The source is a name on the Hub, or a folder, for ``datasets`` to load. The
    audio is written as it is to ``audio/PART`` below the folder, and the state
    to resume from to ``audio/PART.jsonl``. A ValueError says that the rows are
    not those of LibriSpeech."""
    audio = folder / "audio" / part
    audio.mkdir(parents=True, exist_ok=True)
    # The state is that of a version.
    about = {
        "source": source,
        "datasets": importlib.metadata.version("datasets"),
    }
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
    """Stream the parts to train on, without a copy on disk, as batches of ``id``
    and ``sig``, pieces of at most ``longest`` seconds of the utterances.

    A FileNotFoundError says that they cannot be loaded, a ValueError that no
    hours are given, or more than one worker."""
    import datasets

    if not hparams["hours"]:
        raise ValueError(
            "--stream needs --hours: so many are written to disk, for the "
            "statistics of the features."
        )
    source, rate = str(hparams["data_folder"]), hparams["sample_rate"]
    # Two frames.
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
    parts = [parts] if isinstance(parts, str) else parts
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
    """Read the notes of the utterances that are complete."""
    lines = notes.read_text("utf-8").splitlines() if notes.is_file() else []
    if not lines or json.loads(lines[0]) != about:
        return []
    finished = []
    for line in lines[1:]:
        try:
            entry = json.loads(line)
        except ValueError:
            # Killed in the middle of it.
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
    # The bytes of the file: decoding them is soundfile's work.
    return rows.cast_column("audio", datasets.Audio(decode=False))


def _check(row: dict, source: str) -> None:
    """Check the columns of a row, and that its id names a file."""
    missing = [k for k in ("id", "text", "audio") if row.get(k) is None]
    if missing:
        raise ValueError(
            f"The rows of {source} lack {', '.join(missing)}: it is not laid "
            "out as openslr/librispeech_asr is."
        )
    if not re.fullmatch(r"[\w-]+", str(row["id"])):
        raise ValueError(
            f"{source} has an utterance {row['id']!r}, which names no file: "
            "it is not laid out as openslr/librispeech_asr is."
        )


def _write(row: dict, audio: pathlib.Path) -> tuple[pathlib.Path, int]:
    """Write the audio of a row, if it is missing."""
    path = audio / f"{row['id']}.flac"
    data = row["audio"]["bytes"]
    if data is None:
        data = pathlib.Path(row["audio"]["path"]).read_bytes()
    if not path.exists() or path.stat().st_size != len(data):
        with atomic_write(path) as partial:
            partial.write_bytes(data)
    return path, len(data)
