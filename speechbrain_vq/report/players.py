"""Lay out what is seen and heard of example utterances."""

from collections.abc import Iterator
from typing import Any

from speechbrain_vq.evaluation.ipa import to_ipa
from speechbrain_vq.inference import VQTokenizer

from .figures import CodeMap
from .images import mel_ticks, png
from .recordings import Measured


def players(
    tokenizer: VQTokenizer, measured: Measured | None, codes: CodeMap
) -> Iterator[dict[str, Any]]:
    """Yield for each example its texts, clips of audio with their spectrograms,
    tokens and phones, for the template."""
    if measured is None:
        return
    ipa = to_ipa(measured.phones)
    for example in measured.examples:
        phones = [
            (start, min(end, example.seconds), ipa.get(name, name))
            for start, end, name in example.entry.get("phones") or ()
            if start < example.seconds
        ]
        names = ("Original", "Reconstruction")
        clips = zip(names, example.audio, example.mels, strict=True)
        tokens = example.tokens
        # Tokens may end a little before the audio does.
        share = len(tokens) / tokenizer.token_rate / example.seconds
        yield {
            "name": example.name,
            "speaker": example.entry.get("spk_id"),
            "words": example.entry.get("words"),
            "seconds": round(example.seconds, 3),
            "whole": example.whole,
            "clips": [
                {"name": name, "audio": audio, "image": png(mel)}
                for name, audio, mel in clips
            ],
            "ticks": mel_ticks(tokenizer.sample_rate),
            "rate": tokenizer.token_rate,
            "tokens": [" ".join(map(str, row)) for row in tokens.tolist()],
            "books": tokens.shape[1],
            "strip_share": min(share, 1),
            "strip": codes.strip(tokens),
            "phones": phones,
        }
