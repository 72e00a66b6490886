"""Change files of the corpus at random, and keep those that break a reader: that
raise another error than its own, of more than one line, write to stderr, end the
process or take too long. Once the reader is mended, ``test_fuzzer.py`` reads them for ever.

> python -m tests.fuzz.fuzzer --seconds 600
"""

import argparse
import contextlib
import hashlib
import logging
import multiprocessing
import os
import pathlib
import random
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from speechbrain_vq.dataio.audio import AudioError, audio_blocks
from speechbrain_vq.dataio.manifests import ManifestError, read_manifest
from speechbrain_vq.hub import HubError, load_pretrained
from speechbrain_vq.inference import read_tokens
from speechbrain_vq.inference.token_files import TokenFileError
from tests.hub.small_model import write_model

CORPUS = pathlib.Path(__file__).with_name("corpus")
# Seconds that a file may take, of which the slowest of the corpus takes 1 %.
LONGEST = 30


class Reader(NamedTuple):
    """A reader of files, and the errors of which it says that it raises them."""

    read: Callable[[pathlib.Path], object]
    errors: tuple[type[Exception], ...]


def _read_model(path):
    """Load a whole model but for one file, or only that file's names."""
    with tempfile.TemporaryDirectory() as folder:
        folder = write_model(pathlib.Path(folder, "model"))
        (folder / path.name.rpartition("-")[2]).write_bytes(path.read_bytes())
        load_pretrained(folder)


def _read_audio(path):
    assert all(block.isfinite().all() for block in audio_blocks(path, 16000))


def _read_items(path):
    for name, item in read_manifest(path, needed=["length"]).items():
        assert isinstance(name, str) and isinstance(item["wav"], str)
        assert 0 < item["length"] < 1e9
        assert isinstance(item.get("spk_id") or "", str)
        ends = [end for _, end, name in item["phones"] if name + ""]
        assert ends == sorted(ends)


def _read_rows(path):
    rows = list(read_tokens(path))
    # What a checksum guards is whole where it is read; names of arrays are not
    # guarded, but those of these three are needed.
    if path.suffix == ".npz":
        whole = read_tokens(CORPUS / "tokens/good.npz")
        for row, good in zip(rows, whole, strict=True):
            for key in ("path", "tokens", "num_samples"):
                assert row[key] == good[key]
    for row in rows:
        assert np.array(row["tokens"], dtype=np.int64).min(initial=0) >= 0
        assert isinstance(row["path"], str)
        assert isinstance(row["num_samples"], int)


READERS = {
    "audio": Reader(_read_audio, (AudioError,)),
    "manifest": Reader(_read_items, (ManifestError,)),
    "model": Reader(_read_model, (HubError, FileNotFoundError, ValueError)),
    "tokens": Reader(_read_rows, (TokenFileError,)),
}


def corpus(kind: str) -> list[pathlib.Path]:
    """The files of a reader; the name of a broken one ends like its seed's."""
    return sorted((CORPUS / kind).iterdir())


def broken_by(kind: str, path: pathlib.Path) -> str | None:
    """What is wrong with the reader of a file, or None."""
    with tempfile.TemporaryFile() as written:
        stderr = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            wrong = _error_of(kind, path)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        written.seek(0)
        said = written.read().decode(errors="replace")
    return wrong or (f"written to stderr: {said}" if said else None)


def _error_of(kind, path):
    try:
        READERS[kind].read(path)
    except READERS[kind].errors as error:
        # Of a model, Python's and YAML's own messages are given as they are.
        is_line = "\n" not in str(error) and str(path) in str(error)
        if kind != "model" and not is_line:
            return f"an error that is no line with the path: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def changed(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Change some bytes, most often at the begin, where the headers are."""
    for _ in range(draw.choice([1, 1, 2, 4])):
        start = draw.randrange(draw.choice([20, 100, len(content)]) + 1)
        start = min(start, len(content))
        size = draw.choice([0, 1, 1, 2, 4, 8, 100])
        new = draw.choice(
            [
                draw.randbytes(size),
                bytes(size),
                b"\xff" * size,
                b"",
                content[start : start + size] * 2,
                other[start : start + size],
                bytes(b ^ 1 << draw.randrange(8) for b in content[start:][:1]),
                content[-start:] if draw.random() < 0.1 else b"",
                draw.choice([b"\x7f\xff\xff\xff", b"-1", b"1e999", b"NaN"]),
            ]
        )
        end = start + draw.choice([size, len(new), len(new)])
        content = content[:start] + new + content[end:]
    if draw.random() < 0.05:
        content = content[: draw.randrange(len(content) + 1)]
    return content


def fuzz(kind: str, seconds: float, seed: int) -> list[pathlib.Path]:
    """Read changed files for some seconds; return those that broke the reader,
    which are in the corpus then."""
    found, begin = [], time.monotonic()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        while (left := begin + seconds - time.monotonic()) > 0:
            seed += 1
            child = context.Process(
                target=_read_many, args=(kind, left, seed, pathlib.Path(folder))
            )
            child.start()
            while child.is_alive():
                child.join(1)
                for path in pathlib.Path(folder).iterdir():
                    with contextlib.suppress(FileNotFoundError):
                        if time.time() - path.stat().st_mtime > LONGEST:
                            child.kill()
            # What it was reading when it ended, if not for the time.
            for path in pathlib.Path(folder).iterdir():
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()[:8]
                found.append(CORPUS / kind / f"{digest}-{path.name}")
                found[-1].write_bytes(content)
                path.unlink()
    return found


def _read_many(kind, seconds, seed, folder):
    """Leave a file that breaks the reader in the folder, and end."""
    draw, end = random.Random(seed), time.monotonic() + seconds
    seeds = corpus(kind)
    logging.disable()
    while time.monotonic() < end:
        first, second = draw.choice(seeds), draw.choice(seeds)
        path = folder / first.name.rpartition("-")[2]
        path.write_bytes(changed(first.read_bytes(), draw, second.read_bytes()))
        if broken := broken_by(kind, path):
            print(f"{kind}: {path.name}: {broken}", flush=True)
            os._exit(1)
        path.unlink()


def main():
    """Fuzz each reader for its share of the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(READERS))
    options = parser.parse_args()
    for kind in options.kinds:
        share = options.seconds / len(options.kinds)
        for path in fuzz(kind, share, options.seed):
            print(f"kept {path}")


if __name__ == "__main__":
    main()
