"""Phone names in IPA, and manners of articulation."""

from collections.abc import Iterable

from speechbrain_vq.dataio.items import SILENCES

_VOWELS = "iyɨʉɯuɪʏʊeøɘɵɤoəɛœɜɞʌɔæɐaɶɑɒɚɝ"
_CONSONANTS = {
    "approximant": "ljʲwɹɻɥʎɭʟɾrʀɫʋɰɬɮ",
    "nasal": "mnŋɲɳɱɴ",
    "fricative": "fvθðszʃʒʂʐçʝxɣχʁħʕhɦɸβɕʑ",
    "plosive": "pbtdʈɖcɟkgɡqɢʔ",
}
_AFFRICATES = ("tʃ", "dʒ", "ts", "dz", "tɕ", "dʑ", "tʂ", "dʐ", "pf")
_ARPABET = {
    **{"AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "aʊ", "AX": "ə"},
    **{"AY": "aɪ", "B": "b", "CH": "tʃ", "D": "d", "DH": "ð", "DX": "ɾ"},
    **{"EH": "ɛ", "ER": "ɝ", "EY": "eɪ", "F": "f", "G": "ɡ", "HH": "h"},
    **{"IH": "ɪ", "IX": "ɨ", "IY": "i", "JH": "dʒ", "K": "k", "L": "l"},
    **{"M": "m", "N": "n", "NG": "ŋ", "OW": "oʊ", "OY": "ɔɪ", "P": "p"},
    **{"R": "ɹ", "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "UH": "ʊ"},
    **{"UW": "u", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ"},
}
# espeak's names, after Kirshenbaum's ASCII-IPA. Digits and # mark variants.
_ESPEAK_ONLY = "@3ACDEILNOQRSTUVZ&*?0:;"
_ESPEAK = str.maketrans(_ESPEAK_ONLY, "əɜɑçðɛɪɫŋɔɣʀʃθʊʌʒæɾʔɒːʲ", "1245678#-'_")


def to_ipa(names: Iterable[str]) -> dict[str, str]:
    """Map phone names to IPA: from ARPAbet if all names belong to it, from
    espeak's names if any has one of its capitals or signs. Others are taken as
    IPA.

    Example
    -------
    >>> to_ipa(["AH0", "SH"])
    {'AH0': 'ʌ', 'SH': 'ʃ'}
    >>> to_ipa(["tS", "e@", "I2"])
    {'tS': 'tʃ', 'e@': 'eə', 'I2': 'ɪ'}
    """
    names = list(names)
    unstressed = {name: name.rstrip("012") for name in names}
    spoken = [unstressed[name] for name in names if name not in SILENCES]
    if all(name in _ARPABET for name in spoken):
        return {name: _ARPABET.get(unstressed[name], name) for name in names}
    letters = {letter for name in spoken for letter in name}
    if letters.isdisjoint(_ESPEAK_ONLY):
        return dict(zip(names, names, strict=True))
    return {
        name: name
        if name in SILENCES
        else name.translate(_ESPEAK).replace("r", "ɹ") or name
        for name in names
    }


def manner(ipa: str) -> str:
    """Return the manner of articulation of a phone in IPA.

    Example
    -------
    >>> [manner(phone) for phone in ("tʃ", "aɪ", "iː", "SIL", "!")]
    ['affricate', 'diphthong', 'vowel', 'silence', 'other']
    """
    if ipa in SILENCES:
        return "silence"
    ipa = ipa.replace("͡", "")  # Tie bar
    if ipa.startswith(_AFFRICATES):
        return "affricate"
    if ipa[0] in _VOWELS:
        different = {letter for letter in ipa if letter in _VOWELS}
        return "diphthong" if len(different) > 1 else "vowel"
    for name, letters in _CONSONANTS.items():
        if ipa[0] in letters:
            return name
    return "other"
