"""Generate the texts of MiniSpeech: English sentences from templates."""

import random
import re
import zlib
from collections.abc import Iterator

# Chosen to contain every phone of American English.
WORDS = {
    "det": "the this that every some my your their our another one".split(),
    "adj": "old yellow quiet huge joyful young shiny thick rare cheap weird"
    " bright smooth loyal vague genuine royal cautious healthy purple wooden"
    " unusual fuzzy northern poor".split(),
    "noun": "church oyster measure vision judge teacher bird garage village"
    " mouth father king boy woman horse elephant island engine jungle sailor"
    " treasure kitchen author cousin feather monkey tailor butcher zebra"
    " window thing choir pilot cow".split(),
    "verb": "watched enjoyed measured touched followed painted chose thanked"
    " bought visited heard carried admired finished changed avoided"
    " recognized loathed pushed hugged found taught ignored washed".split(),
    "tail": "near the harbor|with great pleasure|before lunch|on Thursday"
    "|behind the old barn|without a sound|for the third time|at the beach"
    "|during the voyage|in July|under the bridge|again and again"
    "|as usual|beyond the valley".split("|"),
}
TEMPLATES = (
    "<det> <adj> <noun> <verb> <det> <noun> <tail>.",
    "<det> <noun> <verb> <det> <adj> <noun>.",
    "<tail>, <det> <noun> <verb> <det> <noun>.",
    "<det> <noun> and <det> <adj> <noun> <verb> <det> <noun> <tail>.",
    "who <verb> <det> <adj> <noun> <tail>?",
)


def sentences(rng: random.Random, split: str) -> Iterator[str]:
    """Yield an endless stream of different sentences of one split.

    The split is a function of the text, so no sentence is in two splits, for
    any voice.

    >>> next(sentences(random.Random(0), "train"))
    'Your measure and some royal choir admired some thing without a sound.'
    """
    seen = set()
    while True:
        text = re.sub(
            r"<(\w+)>",
            lambda slot: rng.choice(WORDS[slot[1]]),
            rng.choice(TEMPLATES),
        )
        text = text[0].upper() + text[1:]
        share = zlib.crc32(text.encode()) % 10
        text_split = {0: "valid", 1: "test"}.get(share, "train")
        if text_split == split and text not in seen:
            seen.add(text)
            yield text
