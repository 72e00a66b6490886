"""Small corpora in the layouts of the real ones, of phones that are tones."""

import gzip
import io
import json
import pathlib
import random
import tarfile

import numpy as np
import soundfile

from speechbrain_vq.dataio.manifests import SPLITS

RATE = 16000
VOICE = "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
TONES = {"a": 300, "o": 600, "s": 4000, "t": 2500, "m": 1200, "pau": 0}
LEXICON = """;;; A comment
A  AH0
A(2)  EY1
TEA  T IY1
TO  T UW1 # to
SEE  S IY1
SEA(1)  S IY1
,COMMA  K AA1 M AH0
"""
WORDS = ("A", "TEA", "TO", "SEE")
ENGLISH = {"AH": 700, "T": 2500, "IY": 300, "UW": 1200, "S": 4000}
ENGLISH |= {"K": 3200, "AA": 900, "M": 500}
PHONES = {"A": ["AH"], "TEA": ["T", "IY"], "TO": ["T", "UW"]}
PHONES["SEE"] = ["S", "IY"]


def sound(frequencies, seconds=0.08):
    """Tones one after the other, 16 bits."""
    time = np.arange(round(seconds * RATE)) / RATE
    parts = [np.sin(2 * np.pi * f * time) for f in frequencies]
    noise = np.random.default_rng(0).normal(size=len(parts) * len(time))
    return (8000 * np.concatenate(parts) + 20 * noise).astype("<i2")


def wav_bytes(samples, kind="WAV"):
    """A whole audio file."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=kind)
    return file.getvalue()


def festvoxru_files(number=60):
    """The files of the package by path, and the phones of each utterance."""
    draw, files, phones_of = random.Random(0), {}, {}
    texts = []
    for index in range(1, number + 1):
        name = f"ru_{index:04d}"
        phones = draw.choices(sorted(set(TONES) - {"pau"}), k=6)
        phones = phones_of[name] = ["pau", *phones, "pau"]
        samples = sound([TONES[p] for p in phones])
        lab = [f"{0.08 * n:.5f} 125 {p}\n" for n, p in enumerate(phones, 1)]
        files[f"{VOICE}/wav/{name}.wav"] = wav_bytes(samples)
        files[f"{VOICE}/lab/{name}.lab"] = "".join(["#\n", *lab]).encode()
        texts.append(f'( {name} "Вол+ос, номер {index}." )\n')
    files[f"{VOICE}/etc/txt.done.data"] = "".join(texts).encode()
    files[f"{VOICE}/mcep/ru_0001.mcep"] = b"not wanted"
    files["usr/share/doc/festvox-ru/copyright"] = b"BSD-like"
    return files, phones_of


def debianspeech_files(number=40):
    """The files of each package by path."""
    files = {"festvox-ru": festvoxru_files()[0]}
    for lang, voice in (
        ("en", "en_US_f_Allison"),
        ("es", "es_MX_f_Allison"),
        ("fr", "fr_CA_f_June"),
        ("it", "it_IT_m_Carlo"),
        ("ru", "ru_RU_f_IvrvoiceRU"),
    ):
        name = f"asterisk-core-sounds-{lang}"
        names = [f"digits/{i}" for i in range(number)]
        names += ["letters/a", "silence/1", "beep", "music"]
        # Whatever the bytes are, G.722 makes two samples of each.
        root = f"usr/share/asterisk/sounds/{voice}"
        sounds = files[f"{name}-g722"] = {f"{root}/short.g722": b""}
        for path in names:
            sounds[f"{root}/{path}.g722"] = random.Random(path).randbytes(9000)
        lines = [f"{path}: Say {path} [beep]." for path in names[:number]]
        text = "; Comment\n" + "\n".join([*lines, "music: [music]"])
        path = f"usr/share/doc/{name}/core-sounds-{lang}.txt.gz"
        files[name] = {path: gzip.compress(text.encode())}
    stamps = "usr/share/tuxpaint/stamps/animals"
    files["tuxpaint-stamps-default"] = {
        f"{stamps}/{i}_desc_{lang}.ogg": wav_bytes(sound([300] * 13), "OGG")
        for i in range(number)
        for lang in ("es", "fr")
    }
    for name, contents in files.items():
        contents[f"usr/share/doc/{name}/copyright"] = b"free"
    return files


def make_debianspeech(folder):
    """A folder with the packages."""
    folder.mkdir(parents=True)
    for name, files in debianspeech_files().items():
        make_deb(folder / f"{name}_1.0_all.deb", files, "data.tar.gz", "w:gz")


def make_tar(files, mode="w:xz"):
    """An archive with names such as ``./usr/share/doc``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_deb(path, files, data="data.tar.xz", mode="w:xz"):
    """A Debian package: an ar archive of three members."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": make_tar({"control": b"Package: festvox-ru\n"}),
        data: make_tar(files, mode),
    }
    out = b"!<arch>\n"
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}".encode()
        out += f"{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    path.write_bytes(out)
    return path


def write(folder, files):
    """Puts files in a folder."""
    for name, data in files.items():
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def read(folder):
    """The manifests of a folder."""
    return {s: json.loads((folder / f"{s}.json").read_text()) for s in SPLITS}


def utterances(folder):
    """The items of all manifests of a folder."""
    return {k: v for part in read(folder).values() for k, v in part.items()}


def sphere(samples, coding="pcm", missing=0):
    """A file of NIST SPHERE: 1024 bytes of text, and samples."""
    header = (
        "NIST_1A\n   1024\nmicrophone -s10 Sennheiser\n"
        f"sample_count -i {len(samples)}\nsample_rate -i {RATE}\n"
        "channel_count -i 1\nsample_n_bytes -i 2\nsample_byte_format -s2 01\n"
        f"sample_sig_bits -i 16\nsample_coding -s{len(coding)} {coding}\n"
        "end_head\n"
    )
    data = header.encode().ljust(1024) + samples.astype("<i2").tobytes()
    return data[: len(data) - missing]


def say(words):
    """Words as tones."""
    phones = [phone for word in words for phone in PHONES[word]]
    return sound([ENGLISH[phone] for phone in phones])


def sentences(number, seed=0):
    """Made of the words of the lexicon."""
    draw = random.Random(seed)
    return [draw.choices(WORDS, k=4) for _ in range(number)]


def librispeech_parts():
    """{part: [(name, words)]}."""
    numbers = {"train-clean-100": 12, "dev-clean": 4, "test-clean": 4}
    return {
        part: [
            (f"{speaker}-{20 + i % 2}-{i:04d}", words)
            for i, words in enumerate(sentences(number, speaker))
        ]
        for speaker, (part, number) in enumerate(numbers.items(), 100)
    }


def librispeech_files():
    """The archives of LibriSpeech, unpacked."""
    files, tables = {}, {}
    for part, utterances in librispeech_parts().items():
        for name, words in utterances:
            speaker, chapter, _ = name.split("-")
            home = f"LibriSpeech/{part}/{speaker}/{chapter}"
            files[f"{home}/{name}.flac"] = wav_bytes(say(words), "FLAC")
            table = f"{home}/{speaker}-{chapter}.trans.txt"
            line = f"{name} {' '.join(words)}\n"
            tables[table] = tables.get(table, "") + line
    return files | tables


def wsj_files(upper=False):
    """Four of the discs of WSJ0 and WSJ1."""
    speakers = ("011c", 8), ("4a8c", 8), ("4k0c", 4), ("440c", 4)
    train0, train1, dev, test = (
        [(f"{spk}{i:04d}"[:8], w) for i, w in enumerate(sentences(n, seed))]
        for seed, (spk, n) in enumerate(speakers, 1)
    )
    sets = (
        ("csr_1/11-1.1/wsj0/si_tr_s", "wsj0/transcrp/dots/si_tr_s", train0),
        ("csr_2_comp/13-11.1/wsj1/si_tr_s", "wsj1/trans/wsj1/si_tr_s", train1),
        ("csr_2_comp/13-16.1/wsj1/si_dt_20", "wsj1/trans/wsj1/si_dt_20", dev),
        ("csr_1/11-14.1/wsj0/si_et_20", None, test),
    )
    files = {}
    for home, dots, utterances in sets:
        lines = ""
        for name, words in utterances:
            files[f"{home}/{name[:3]}/{name}.wv1"] = sphere(say(words))
            lines += f"{words[0]} [door_slam] . *{words[1]}* "
            lines += f"{' '.join(words[2:])} ~ ({name})\n"
        spk = utterances[0][0][:3]
        disc = "csr_1/11-13.1" if dots and "wsj0" in dots else ""
        disc = disc or "csr_2_comp/13-34.1"
        at = f"{disc}/{dots}" if dots else home
        files[f"{at}/{spk}/{spk}c0000.dot"] = lines
    listed = "wsj0/si_tr_s/011"
    index = ";; Comment: 11_1_1:wsj0/si_tr_s/no.wv1\n"
    index += "11_2_1:wsj0/si_tr_s/401/401c0201.wv1\n"
    index += "".join(f"11_1_1:{listed}/{n}.wv1\n" for n, _ in train0)
    doc0, doc1 = "csr_1/11-13.1/wsj0/doc", "csr_2_comp/13-34.1/wsj1/doc"
    files[f"{doc0}/indices/train/tr_s_wv1.ndx"] = index
    files[f"{doc0}/indices/test/nvp/si_et_20.ndx"] = "".join(
        f"11_14_1:wsj0/si_et_20/440/{n}\n" for n, _ in test
    )
    files[f"{doc1}/indices/si_tr_s.ndx"] = "".join(
        f"13_11_1: /wsj1/si_tr_s/4a8/{n}.wv1\n" for n, _ in train1
    )
    files[f"{doc1}/indices/h1_p0.ndx"] = "".join(
        f"13_16_1: /wsj1/si_dt_20/4k0/{n}.wv1\n" for n, _ in dev
    )
    if upper:
        files = {
            "/".join([*k.split("/")[:2], *k.upper().split("/")[2:]]): v
            for k, v in files.items()
        }
    return files


# What a run is told of each: the recipes' own tests, and tests/recipes/*.csv.


def make_festvoxru(folder):
    """The package, in a folder; the options that name it."""
    folder.mkdir(parents=True, exist_ok=True)
    make_deb(folder / "festvox-ru_0.5_all.deb", festvoxru_files()[0])
    return {"data_folder": folder}


def make_wsj(folder):
    """The discs and a lexicon."""
    write(folder / "data", wsj_files())
    (folder / "lexicon").write_text(LEXICON)
    return {"data_folder": folder / "data", "lexicon": folder / "lexicon"}


def make_librispeech(folder):
    """The folder LibriSpeech and a lexicon."""
    write(folder / "data", librispeech_files())
    (folder / "lexicon").write_text(LEXICON)
    return {"data_folder": folder / "data", "lexicon": folder / "lexicon"}
