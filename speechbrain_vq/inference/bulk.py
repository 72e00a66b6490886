"""Many files to tokens, in batches, so that a killed run goes on.

Authors
 * speechbrain_vq authors 2026
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from tqdm import tqdm

from speechbrain_vq.dataio.audio import AudioError, check_audio

from .files import audio_blocks
from .tokenizer import VQTokenizer

_WAY_OUT = "Name another file to write, or overwrite this one."
# How our lines begin, and go on after the path.
_START, _NEXT = b'{"path": "', b', "tokens": ['
_PATH = re.compile(rb'\{"path": "(?:[^"\\]|\\.)*"')


class Tokenized(NamedTuple):
    """What became of the files.

    Arguments
    ---------
    done : int
        Files whose tokens are there, those of an earlier run included.
    bad : dict
        Why the others have none, by path.
    there : int
        How many of those done were there already, and stay as they are,
        whatever made them.
    """

    done: int
    bad: dict[str, str]
    there: int = 0


def tokenize_files(
    paths: Iterable[str | os.PathLike],
    tokenizer: VQTokenizer,
    output: str | os.PathLike,
    batch_seconds: float = 60.0,
    progress: bool = False,
) -> Tokenized:
    """Writes the tokens of files, a line of JSON each, longest file first.

    A file that cannot be read is left out. Files that the output has already
    are not done again, so a run that was killed goes on where it was.

    Arguments
    ---------
    paths : iterable of path
        Audio files.
    tokenizer : VQTokenizer
        The model.
    output : path
        The file to write, or to go on with. A line has ``path``, ``tokens``,
        ``token_rate``, ``num_samples``, ``sample_rate``, and the ``model``,
        its ``revision`` on the Hub, the ``fingerprint`` of its weights and
        the ``precision`` that it was computed in.
    batch_seconds : float
        Audio of a batch, padding included; longer files are done alone, in
        pieces of that length.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Tokenized
        How many files are done, and which are bad.

    Raises
    ------
    ValueError
        If the output is of another model or precision, or no such file.
    """
    model = {
        "token_rate": tokenizer.token_rate,
        "sample_rate": tokenizer.sample_rate,
        "model": tokenizer.source,
        "revision": tokenizer.revision,
        "fingerprint": tokenizer.fingerprint,
        "precision": tokenizer.compute_precision,
    }
    output = pathlib.Path(output)
    done = _resume(output, model)
    wanted = list(dict.fromkeys(os.fspath(path) for path in paths))
    seconds, bad = _lengths([path for path in wanted if path not in done])
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(output, "a", encoding="utf-8") as file,
        # In seconds of audio: what is left of files says nothing of the time.
        tqdm(
            total=round(sum(seconds.values())), unit="s", disable=not progress
        ) as bar,
    ):
        for batch in _batches(seconds, batch_seconds):
            for path, result in _encode(tokenizer, batch, batch_seconds):
                if isinstance(result, Exception):
                    bad[path] = str(result)
                    continue
                tokens, num_samples = result
                line = {"path": path, "tokens": tokens.tolist()}
                line |= {"num_samples": num_samples, **model}
                file.write(json.dumps(line) + "\n")
                done.add(path)
            file.flush()
            bar.update(round(sum(seconds[path] for path in batch)))
    return Tokenized(len(done.intersection(wanted)), bad)


def read_lines(output: str | os.PathLike) -> Iterator[dict]:
    """The lines that ``tokenize_files`` wrote.

    Arguments
    ---------
    output : path
        The file.

    Yields
    ------
    dict
        A file's tokens and what goes with them.

    Raises
    ------
    ValueError
        If a line is none of ``tokenize_files``.
    """
    with open(output, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            yield _parse(text, output, number)


def _parse(text, output, number):
    try:
        line = json.loads(text)
        line["path"], line["fingerprint"], line["tokens"]
    except (ValueError, TypeError, KeyError) as error:
        raise _not_ours(output, number) from error
    return line


def _not_ours(output, number):
    return ValueError(
        f"{output}, line {number}: not what `tokenize` writes. {_WAY_OUT}"
    )


def _resume(output, model):
    """The paths that are done; a line that was cut short is cut off, once it
    is known to be ours."""
    if not output.exists():
        return set()
    done, whole = set(), 0
    with open(output, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                _check_rest(text, output, number, bool(done), model)
                break
            line = _parse(text, output, number)
            _check_model(line, output, model)
            done.add(line["path"])
            whole += len(text)
    if whole < output.stat().st_size:
        os.truncate(output, whole)
    return done


def _check_rest(text, output, number, after_ours, model):
    """Refuses a last line without an end that no killed run has left."""
    try:
        json.loads(text)
    except ValueError:
        if not after_ours and not _begins_as_ours(text):
            raise _not_ours(output, number) from None
        return
    # A whole line, whose end somebody has cut off.
    _check_model(_parse(text, output, number), output, model)


def _begins_as_ours(text):
    path = _PATH.match(text)
    if path is None:
        return _agree(text, _START)
    return _agree(text[path.end() :], _NEXT)


def _agree(one, other):
    """As far as both go."""
    return one.startswith(other) or other.startswith(one)


def _check_model(line, output, model):
    if line["fingerprint"] != model["fingerprint"]:
        raise ValueError(
            f"{output} has tokens of another model: of '{line['model']}' "
            f"(revision {line['revision']}, weights {line['fingerprint']}), "
            f"not of '{model['model']}' ({model['revision']}, "
            f"{model['fingerprint']}). {_WAY_OUT}"
        )
    if line.get("precision") != model["precision"]:
        raise ValueError(
            f"{output} has tokens computed in {line.get('precision')}, not in "
            f"{model['precision']}: go on in that precision. {_WAY_OUT}"
        )


def _lengths(paths):
    """Seconds by path, and why the others cannot be used."""
    seconds, bad = {}, {}
    for path in paths:
        try:
            seconds[path] = check_audio(path)
        except AudioError as error:
            bad[path] = str(error)
    return seconds, bad


def _batches(seconds, batch_seconds):
    """Lists of paths; the first of a list is the longest."""
    batch = []
    for path in sorted(seconds, key=seconds.get, reverse=True):
        if batch and seconds[batch[0]] * (len(batch) + 1) > batch_seconds:
            yield batch
            batch = []
        batch.append(path)
    if batch:
        yield batch


def _encode(tokenizer, batch, batch_seconds):
    """Paths with tokens and the number of samples, or with an error."""
    if len(batch) == 1:
        yield batch[0], _encode_long(tokenizer, batch[0], batch_seconds)
        return
    wavs = []
    for path in batch:
        try:
            blocks = list(audio_blocks(path, tokenizer.sample_rate))
            wavs.append(torch.cat(blocks))
        except AudioError as error:
            yield path, error
            batch = [other for other in batch if other != path]
    if not wavs:
        return
    lengths = torch.tensor([len(w) for w in wavs], dtype=torch.float32)
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    try:
        tokens, shares = tokenizer.encode_batch(
            padded, lengths / padded.shape[1]
        )
        counts = torch.round(shares.cpu() * tokens.shape[1]).int().tolist()
    except ValueError:
        counts = [0] * len(batch)
    for index, path in enumerate(batch):
        if counts[index]:
            item = tokens[index, : counts[index]], len(wavs[index])
        else:
            # Alone it says what is wrong with it, and with no other.
            item = _encode_long(tokenizer, path, batch_seconds)
        yield path, item


def _encode_long(tokenizer, path, batch_seconds):
    num_samples = 0

    def counted():
        nonlocal num_samples
        rate = tokenizer.sample_rate
        for block in audio_blocks(path, rate, batch_seconds):
            num_samples += len(block)
            yield block

    try:
        return tokenizer.tokenize(counted(), batch_seconds), num_samples
    except AudioError as error:
        return error
    except ValueError as error:
        return ValueError(f"{path}: {error}")
