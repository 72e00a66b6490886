"""Convert words to phones by a lexicon, a function, or both."""

import collections
import logging
import pathlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable

from speechbrain_vq.dataio.manifests import digest

logger = logging.getLogger(__name__)

G2P = Callable[[str], str | Iterable[str]]


def read_lexicon(path: pathlib.Path) -> dict[str, list[str]]:
    """Read a lexicon in the format of CMUdict and of librispeech-lexicon.txt:
    phones by word, in capitals.

    A line has a word and its phones. Of several pronunciations, the first
    counts; the digits of stress are left out, and so are lines of ``;;;`` and
    what follows a ``#``.

    >>> read_lexicon(pathlib.Path("cmudict.dict"))["TEA"]  # doctest: +SKIP
    ['T', 'IY']
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no lexicon {path}. It may be CMUdict, or "
            "librispeech-lexicon.txt of https://www.openslr.org/11."
        )
    lexicon: dict[str, list[str]] = {}
    # CMUdict is older than UTF-8 is common.
    for line in path.read_text("latin-1").splitlines():
        if line.startswith(";;;"):
            continue
        word, *phones = line.split("#")[0].split() or [""]
        if not phones:
            continue
        word = re.sub(r"\(\d+\)$", "", word).upper()
        lexicon.setdefault(word, [re.sub(r"\d+$", "", p) for p in phones])
    if not lexicon:
        raise ValueError(
            f"{path} is no lexicon: no line has a word and its phones."
        )
    return lexicon


def find_g2p(name: str) -> G2P:
    """Import ``module:function``, of a module that is installed or in the
    current folder, which converts a word to phones: a list, or a text with
    spaces.

    >>> find_g2p("builtins:list")("tea")
    ['t', 'e', 'a']
    """
    # Of a script, Python searches the script's folder alone. It is last, and
    # stays: the function may import as well.
    here = str(pathlib.Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"g2p is {name!r}; it must be module:function that Python can "
            f"import, from {here} too: {error}"
        ) from error
    if not callable(function):
        raise ValueError(f"g2p is {name!r}, which is no function.")
    return function


class Pronouncer:
    """Convert texts to phones, by a lexicon (see ``read_lexicon``), a
    ``module:function`` for the words that it lacks (see ``find_g2p``), or one
    of both, and count the words that have no phones.

    Example
    -------
    >>> pronouncer = Pronouncer(g2p="builtins:list")
    >>> pronouncer("A TEA")
    ['A', 'T', 'E', 'A']
    """

    def __init__(
        self, lexicon: str | pathlib.Path | None = None, g2p: str | None = None
    ):
        if lexicon is None and g2p is None:
            raise ValueError(
                "Phones come from a lexicon in the format of CMUdict "
                "(--lexicon=FILE, for example librispeech-lexicon.txt of "
                "https://www.openslr.org/11), from a function that says a word "
                "in phones (--g2p=module:function), or from both."
            )
        self.words: dict[str, list[str]] = {}
        # Other phones, other manifests.
        self.about = {"g2p": g2p, "lexicon": ""}
        if lexicon is not None:
            self.words = read_lexicon(pathlib.Path(lexicon))
            self.about["lexicon"] = digest([pathlib.Path(lexicon).read_bytes()])
        self.g2p = None if g2p is None else find_g2p(g2p)
        self.unknown: collections.Counter[str] = collections.Counter()
        self.texts_lost = 0

    def __call__(self, text: str) -> list[str] | None:
        """Convert a text to phones; None if it has a word without any."""
        phones = [self._pronounce(word.upper()) for word in text.split()]
        if None in phones:
            self.texts_lost += 1
            return None
        return [phone for word in phones for phone in word]

    def _pronounce(self, word: str) -> list[str] | None:
        # ",COMMA" is in some lexica as it is; 'EM is, and so is MR.
        bare = word.strip("\"'(){}.,;:!?-/&%")
        for form in (word, word.rstrip(".,;:"), bare):
            if form in self.words:
                return self.words[form]
        parts = [part for part in word.split("-") if part]
        if len(parts) > 1 and all(part in self.words for part in parts):
            return [phone for part in parts for phone in self.words[part]]
        if self.g2p is not None:
            phones = self.g2p(word)
            phones = phones.split() if isinstance(phones, str) else [*phones]
            if phones:
                return [str(phone) for phone in phones]
        self.unknown[word] += 1
        return None

    def log_unknown(self, name: str) -> None:
        """Log which words had no phones, and how many utterances of a corpus
        they cost."""
        if not self.unknown:
            return
        worst = [f"{word} ({n})" for word, n in self.unknown.most_common(10)]
        logger.warning(
            "%s: %d utterances are left out, for %d words that are not in the "
            "lexicon, most often %s. A --g2p=module:function could say them.",
            *(name, self.texts_lost, len(self.unknown), ", ".join(worst)),
        )
