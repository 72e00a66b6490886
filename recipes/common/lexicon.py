"""Convert words to phones with a lexicon, a function, or both."""

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
    """Read a lexicon in the format of CMUdict and librispeech-lexicon.txt, and
    return the phones of each uppercase word.

    A line has a word and its phones. The first of several pronunciations is
    used, without stress digits. Lines that start with ``;;;`` and text after
    ``#`` are comments.

    >>> read_lexicon(pathlib.Path("cmudict.dict"))["TEA"]  # doctest: +SKIP
    ['T', 'IY']
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no lexicon {path}. Use CMUdict, or "
            "librispeech-lexicon.txt of https://www.openslr.org/11."
        )
    lexicon: dict[str, list[str]] = {}
    # CMUdict predates the common use of UTF-8.
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
            f"{path} is not a lexicon: no line has a word and phones."
        )
    return lexicon


def find_g2p(name: str) -> G2P:
    """Import ``module:function``, which converts a word to phones: a list, or
    a string with spaces. The module is installed or in the current folder.

    >>> find_g2p("builtins:list")("tea")
    ['t', 'e', 'a']
    """
    # A script can import from its own folder, but not from the current one. The
    # path is not removed again, because the function may import modules itself.
    current = str(pathlib.Path.cwd())
    if current not in sys.path:
        sys.path.append(current)
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"g2p is {name!r}; it must be module:function that Python can "
            f"import, for example from {current}: {error}"
        ) from error


class Pronouncer:
    """Converter from texts to phones that counts words without phones. It uses
    a lexicon (see ``read_lexicon``), a ``module:function`` (see ``find_g2p``),
    or both: the function then gets the words that are not in the lexicon.

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
                "Phones require a lexicon in the format of CMUdict "
                "(--lexicon=FILE, for example librispeech-lexicon.txt of "
                "https://www.openslr.org/11), a function that converts a word "
                "to phones (--g2p=module:function), or both."
            )
        self.words: dict[str, list[str]] = {}
        # For corpus.json: manifests are rewritten if the source changes.
        self.about = {"g2p": g2p, "lexicon": ""}
        if lexicon is not None:
            self.words = read_lexicon(pathlib.Path(lexicon))
            self.about["lexicon"] = digest([pathlib.Path(lexicon).read_bytes()])
        self.g2p = None if g2p is None else find_g2p(g2p)
        self.unknown: collections.Counter[str] = collections.Counter()
        self.texts_lost = 0

    def __call__(self, text: str) -> list[str] | None:
        """Convert a text to phones, or return None if a word has no phones."""
        phones = [self._pronounce(word.upper()) for word in text.split()]
        if None in phones:
            self.texts_lost += 1
            return None
        return [phone for word in phones for phone in word]

    def _pronounce(self, word: str) -> list[str] | None:
        # Some lexicons have entries with punctuation: ",COMMA", "'EM", "MR.".
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
        """Warn about words without phones, and the number of utterances that a
        corpus loses because of them."""
        if not self.unknown:
            return
        common = [f"{word} ({n})" for word, n in self.unknown.most_common(10)]
        logger.warning(
            "%s: %d utterances are left out, for %d words that are not in the "
            "lexicon, most often %s. --g2p=module:function can convert them.",
            *(name, self.texts_lost, len(self.unknown), ", ".join(common)),
        )
