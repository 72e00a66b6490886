"""Synthetic features of 3 speakers x 2 contexts x 3 phones x 6 tokens."""

import math
import random

import torch

from speechbrain_vq.dataio.items import Item, make_items
from speechbrain_vq.evaluation.abx_items import frames_of
from speechbrain_vq.evaluation.utterances import Utterance

RATE = 50


def synthetic_items(seed=0, noise=1.0, dim=8):
    """Frames of each item, and the items; edges are between frames."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    def jitter():
        return float(torch.rand(1, generator=draw)) * 0.8 - 0.4

    phones, speakers = normal(3, dim), normal(3, dim) * 0.7
    contexts = normal(2, dim) * 0.5
    files, items = {}, []
    for s in range(3):
        rows, start = [], 0
        for c in range(2):
            for p in range(3):
                for _ in range(6):
                    size = int(torch.randint(3, 9, (1,), generator=draw))
                    drift = torch.linspace(-1, 1, size)[:, None] * contexts[c]
                    frames = phones[p] + speakers[s] + drift
                    rows.append(frames + noise * normal(size, dim))
                    onset = max(start + jitter(), 0) / RATE
                    offset = (start + size + jitter()) / RATE
                    names = f"p{p}", f"b{c}", f"n{c}", f"s{s}"
                    times = round(onset, 6), round(offset, 6)
                    items.append(Item(f"f{s}", *times, *names))
                    start += size
        files[f"f{s}"] = torch.cat([*rows, normal(2, dim)])
    return [files[i.file][frames_of(i, RATE)] for i in items], items


def units_of(features):
    """Codes of synthetic features, [T, 1]."""
    book = torch.randn(6, 8, generator=torch.Generator().manual_seed(9))
    return [torch.cdist(f, book).argmin(1, keepdim=True) for f in features]


def utterance(tokens, seconds=1.0, name="utt-1", entry=None, **options):
    """An utterance of tokens, [T, C]."""
    rate = max(len(tokens), 1) / seconds
    return Utterance(name, entry or {}, tokens, rate, seconds, **options)


def tones(frequencies, rate=16000):
    """A tenth of a second of each."""
    time = torch.arange(rate // 10) / rate
    return torch.cat([torch.sin(2 * math.pi * f * time) for f in frequencies])


def spans(names, rate=10):
    """Phones one after the other, some a second."""
    return [(i / rate, (i + 1) / rate, name) for i, name in enumerate(names)]


def corpus(utterances, speakers=20, phones=30):
    """Items of a corpus."""
    items = []
    for number in range(utterances):
        draw = random.Random(number)
        aligned = spans(f"p{draw.randrange(phones)}" for _ in range(30))
        speaker = f"s{number % speakers}"
        items += make_items(f"u{number}", aligned, speaker, True)
    return items
