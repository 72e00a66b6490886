"""Hostile yaml files, and their effect on who loads them.

Tests and the benchmark of the loader share the list. To see the effect of all
of them on one loader:
> python -m tests.hub.attacks data|stock OUT.json
"""

import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
from typing import NamedTuple

# What a loading may take: bytes beyond what the process has, and seconds.
MEMORY, SECONDS = 3 * 2**30, 8
FOREIGN = ("passwd", "inc.yaml", "weights.pt")


class Attack(NamedTuple):
    """A yaml, and what HyperPyYAML does with it.

    CMD leaves a trace, TRACE is its path. ``stock`` begins what it did."""

    name: str
    text: str
    stock: str


def _chain(first, line, number=40):
    return "\n".join([first, *(line(i, i + 1) for i in range(number))])


def _nine(number):
    """A list of aliases."""
    return "[" + ", ".join([f"*a{number}"] * 9) + "]"


def _laughs(level):
    inner = _laughs(level - 1) if level else "x"
    return f"&a{level} [{inner}" + f", *a{level - 1}" * 8 * bool(level) + "]"


RUNS, HANDS, OPENS = "runs the command", "hands out", "opens"
TAKES, RAISES = "takes over", "raises"
LINEAR = "a: !new:torch.nn.Linear [2, 3]\n"
LAYERS = "{d_model: 1, nhead: 1, num_encoder_layers: 100000000}"
CRDNN = "!new:speechbrain.lobes.models.CRDNN.CRDNN"
PRETRAINER = "!new:speechbrain.utils.parameter_transfer.Pretrainer"

# By what HyperPyYAML does with them.
STOCK = {
    RUNS: {
        "apply": "x: !apply:os.system [CMD]",
        "constructor with side effects": "x: !new:subprocess.Popen\n    "
        "args: [touch, TRACE]",
        "applyref": "x: !applyref:os.system [CMD]",
        "python tag": "x: !!python/object/apply:os.system [CMD]",
        "tagged tuple": "x: !tuple (!!python/object/apply:os.system [CMD],)",
        "untagged tuple": "x: (!!python/object/apply:os.system [CMD],)",
        "tag handle": "%TAG !e! !apply:os.\n---\nx: !e!system [CMD]",
        "percent-encoded tag": "x: !%61pply:os.system [CMD]",
        "verbatim tag": "x: !<!apply:os.system> [CMD]",
        "through an honest module": "x: !apply:speechbrain.utils.fetching."
        "shutil.os.system [CMD]",
        "through torch": "x: !apply:torch.os.system [CMD]",
        "honest function that runs": "x: !apply:speechbrain.utils."
        "superpowers.run_shell [CMD]",
        "include": "x: !include:inc.yaml",
        "string put together": 'p: "("\na: "!!python/object/apply:os.system [CMD]"\nq: ",)"\n'
        "x: !ref <p><a><q>",
        "eval": "x: !apply:eval [\"__import__('os').system('CMD')\"]",
        "python tag of a class": "x: !!python/object/apply:subprocess."
        "Popen [[touch, TRACE]]",
        "writing constructor": "x: !new:logging.FileHandler [TRACE]",
        "anchor used twice": "a: &a 1\nb: *a\nc: &a !apply:os.system "
        "[CMD]\nd: *a",
        "merged mapping": "a: &a {k: !apply:os.system [CMD]}\nx: {<<: *a}",
        "string put together by !copy": 'a: "!!python/object/apply:os.system [CMD]"\nx: !copy (<a>,)',
        "key that is dropped": "__x: !apply:os.system [CMD]",
        "module that calls its argument": f"x: {CRDNN}\n    input_shape: "
        "[null, null, 40]\n"
        "    activation: !name:os.system\n        command: CMD",
    },
    HANDS: {
        "name": "x: !name:os.system\n    command: CMD",
        "globals of a function": "a: !name:os.path.join\nx: !ref <a."
        "__globals__>",
        "private attribute": "a: !name:torch.nn.Linear\nx: !ref <a.__init__>",
        "torch.load": "x: !name:torch.load",
        "torch.hub.load": "x: !name:torch.hub.load",
        "load_pickle": "x: !name:speechbrain.dataio.dataio.load_pickle",
        "python/name": "x: !!python/name:os.system",
        "re-export of torch.load": "x: !name:speechbrain_vq.nnet.search."
        "torch.load",
        "all modules of the process": "x: !name:torch.nn.modules.module."
        "warnings.sys.modules",
        "hook on all modules": "x: !name:torch.nn.modules.module."
        "register_module_forward_hook",
        "private name": "x: !name:torch.nn.modules.utils._ntuple",
        "method by name": "x: !name:torch.nn.Module.apply",
        "class that unpickles what it schedules": "x: !new:speechbrain."
        "nnet.schedulers.NewBobScheduler [1.0]",
        "bound method": LINEAR + "x: !ref <a.apply>",
        "hooks by attribute": LINEAR + "x: !ref <a.register_forward_hook>",
        "class by attribute": LINEAR + "x: !ref <a.__class__>",
        "attribute of an attribute": LINEAR
        + "b: !ref <a.forward>\nx: !ref <b.__func__>",
        "attribute put together": LINEAR + 'b: "<a.__class__>"\nx: !ref <b>',
        "pretrainer with hooks": LINEAR
        + f"x: {PRETRAINER}\n    loadables: {{a: !ref <a>}}\n"
        "    custom_hooks: {a: !name:torch.nn.ReLU }",
        "pretrainer with a call": LINEAR
        + f"x: {PRETRAINER}\n    loadables: {{a: !ref <a>}}\n"
        "    conditions: {a: !name:torch.nn.ReLU }",
        "pretrainer that reads another folder": LINEAR
        + f"x: {PRETRAINER}\n    loadables: {{../secret: !ref <a>}}",
    },
    OPENS: {
        "include of any file": "x: !include:/etc/passwd",
        "module that reads a checkpoint": "x: !new:speechbrain.lobes."
        "models.beats.BEATs [weights.pt]",
        "codec that reads a checkpoint": "x: !new:speechbrain.lobes."
        "models.discrete.dac.DAC\n"
        "    load_pretrained: True\n    load_path: weights.pt",
    },
    "imports this": {
        "import": "x: !module:this",
        "python/module": "x: !!python/module:this",
    },
    RAISES: {
        "tag on a key": "? !apply:os.system [CMD]\n: 1",
        "foreign class in an honest module": "x: !new:torch.nn.modules."
        "module.functools.partial [1]",
        "wide letter": "x: !name:%EF%BD%8Fs.system",
        "lookalike letter": "x: !new:torch.nn.Line%D0%B0r [2, 3]",
        "key twice": "x: 1\nx: !apply:os.system [CMD]",
        "deep nesting": "x: " + "[" * 5000 + "]" * 5000,
    },
    TAKES: {
        "billion laughs": _chain(
            "a0: &a0 x", lambda i, j: f"a{j}: &a{j} " + _nine(i), 12
        ),
        "billion laughs from within": "x: " + _laughs(12),
        "merges that multiply": _chain(
            "a0: &a0 {x: 1, y: 2}",
            lambda i, j: f"a{j}: &a{j} {{<<: " + _nine(i) + "}",
            12,
        ),
        "many merges of one mapping": "a: &a\n"
        + "".join(f"  k{i}: 1\n" for i in range(500))
        + "x:\n"
        + "- {<<: *a}\n" * 500,
        "merges that multiply in a tuple": 'x: !tuple "('
        + _chain(
            "&a0 {x: 1, y: 2}",
            lambda i, j: f", &a{j} {{<<: " + _nine(i) + "}",
            12,
        ).replace("\n", "")
        + ')"',
        "references that nothing closes": 'x: !ref "' + "<" * 2**17 + '"',
        "references that multiply": _chain(
            "a0: [1, 1]",
            lambda i, j: f"a{j}: &a{j} [!ref <a{i}>, !ref <a{i}>]\nb{j}: *a{j}",
        ),
        "copies that multiply": _chain(
            "a0: [1, 1]", lambda i, j: f"a{j}: [!copy <a{i}>, !copy <a{i}>]"
        ),
        "string that doubles": _chain(
            "a0: xxxxxxxx", lambda i, j: f"a{j}: !ref <a{i}><a{i}>"
        ),
        "string in itself": 'a: "<a><a>"\nx: !ref <a>',
        "text of a structure": _chain(
            "a0: [1, 1]", lambda i, j: f"a{j}: [!ref <a{i}>, !ref <a{i}>]", 30
        )
        + "\nx: !ref <a30>!",
        "power": "a: 9\nx: !ref <a> ** <a> ** <a>",
        "text times number": "a: 9000000000\nx: !ref \"'a' * <a>\"",
        "wide format": "a: 9000000000\nx: !ref \"'%0<a>d' % 1\"",
        "large file": "\n".join(f"k{i}: {i}" for i in range(10**6)),
        "huge tensor": "x: !new:torch.nn.Linear [10000000, 10000000]",
        "large tensor": "x: !new:torch.nn.Linear [40000, 40000]",
        "many small tensors": f"x: !new:torch.nn.Transformer {LAYERS}",
        "many modules without tensors": "x: !new:torch.nn."
        "TransformerDecoder\n"
        "    decoder_layer: !new:torch.nn.Identity\n"
        "    num_layers: 100000000",
        "many parameters of one module": "x: !new:torch.nn.LSTM [1, 1, "
        "1000000000]",
        "large dummy input": "x: !new:speechbrain.nnet.containers."
        "Sequential\n"
        "    input_shape: [1, 100000, 100000]\n"
        "    a: !name:speechbrain.nnet.linear.Linear\n        n_neurons: 1",
        "size put together": 'a: "9"\nb: !ref <a><a><a><a><a>\n'
        "x: !new:torch.nn.Linear [!ref <b>, !ref <b>]",
    },
}
ATTACKS = [
    Attack(name, text, stock)
    for stock, texts in STOCK.items()
    for name, text in texts.items()
]


# Aimed at the loader of plain data.
AIMED = {
    "alias in itself": "x: &a [1, *a]",
    "reference to itself": "x: !ref <x>",
    "reference in a circle": "a: [!ref <x>]\nx: [!ref <a>]",
    "references that multiply in lists": _chain(
        "a0: [1, 1]",
        lambda i, j: f"a{j}: [!ref <a{i}>, !ref <a{i}>, !ref <a{i}>]",
        30,
    ),
    "giant integer": "x: " + "9" * 60000,
    "giant float": "x: 0." + "9" * 60000,
    "sexagesimal number": "%YAML 1.1\n---\nx: 1" + ":59" * 20000,
    "integer that is none": "x: !!int 0x",
    "binary": "x: !!binary aGVsbG8=",
    "set": "x: !!set {a, b}",
    "ordered mapping": "x: !!omap [a: 1]",
    "long comment": "x: 1 #" + "x" * 10**7,
    "many words": "x: " + "a b " * 16000 + "\ny: !apply:os.system [CMD]",
    "folded lines": "x: >\n" + "  a\n" * 16000 + "y: !x 1",
    "brackets in a line": "x: " + "[" * 1000 + "]" * 1000,
    "brackets in many lines": "x: " + ("[" * 250 + "\n") * 200,
    "complex keys": "? {a: 1}\n: 2",
    "lists as keys": "? [a]\n: 2",
    "many keys": "\n".join(f"k{i}: 1" for i in range(5000)),
    "class of a re-export": "x: !new:speechbrain_vq.nnet.search.torch.nn."
    "Linear [2, 3]",
    "base class": "x: !new:torch.nn.Module",
    "module that reads files": "x: !new:speechbrain.lobes.models."
    "huggingface_transformers.wav2vec2.Wav2Vec2 {source: lab/evil, "
    "save_path: .}",
    "model within a model": "x: !new:speechbrain_vq.VQTokenizer",
    "registering": "x: !new:speechbrain_vq.hub.registry.register_module "
    "[os.system]",
    "arguments as text": "x: !new:torch.nn.Linear (2, 3)",
    "NaN for a size": "x: !new:torch.nn.Dropout [.nan]",
    "infinite size": "x: !new:torch.nn.Linear [2, .inf]",
    "huge filter bank": "x: !new:speechbrain_vq.lobes.features.LogMel "
    "{n_fft: 1000000, n_mels: 100000}",
    "huge window": "x: !new:speechbrain_vq.lobes.features.LogMel "
    "{n_fft: 1000000}",
    "huge context": "x: !new:speechbrain.lobes.features.Fbank "
    "{context: true, left_frames: 100000, right_frames: 100000}",
    "large vocoder": "x: !new:speechbrain_vq.lobes.vocoder."
    "SourceFilterVocoder {channels: 4096, num_layers: 256}",
    "device of a layer": "x: !new:torch.nn.Linear\n"
    "    {in_features: 16384, out_features: 16384, device: cpu}",
    "device by position": "x: !new:torch.nn.Linear [8, 8, true, cuda]",
    "many filter banks": "x:\n" + "    - !new:speechbrain.lobes.features.Fbank "
    "{n_fft: 8192, n_mels: 512}\n" * 200,
    "many vocoders": "x:\n" + "    - !new:speechbrain_vq.lobes.vocoder."
    "SourceFilterVocoder {channels: 1, num_layers: 1}\n" * 20,
    "many codebooks": "x: !new:speechbrain_vq.nnet.VectorQuantizer "
    "{input_dim: 1, codebook_size: 1, num_codebooks: 1000000}",
    "large codebooks": "x: !new:speechbrain_vq.nnet.VectorQuantizer "
    "{input_dim: 1000000, codebook_size: 1000000}",
    "huge dilations": "x: !new:speechbrain_vq.lobes.wavenet."
    "WaveNetDecoder {input_dim: 4, speaker_dim: 4, samples_per_token: "
    "320, num_layers: 1000000, cycle: 1000000}",
    "many blocks": "x: !new:speechbrain_vq.lobes.autoencoder.ConvEncoder "
    "{input_dim: 1, output_dim: 1, channels: 1, num_blocks: 1000000}",
    "many layers of one module": "x: !new:torch.nn.LSTM [1, 1, 1000000]",
    "many modules in a list": "x: !new:torch.nn.ModuleList [["
    + "!new:torch.nn.LSTM [1, 1, 250]\n,    " * 200
    + "]]",
    "many residual blocks": "x: !new:speechbrain.lobes.models.HifiGAN."
    "HifiganGenerator\n    in_channels: 1\n    out_channels: 1\n"
    "    resblock_type: '1'\n    upsample_initial_channel: 1048576\n"
    "    resblock_dilation_sizes: ["
    + "[1, 1, 1],\n     " * 60
    + "]\n    resblock_kernel_sizes: [\n     "
    + "3, " * 60
    + "]\n    upsample_kernel_sizes: [\n     "
    + "4, " * 20
    + "]\n    upsample_factors: [\n     "
    + "2, " * 20
    + "]",
}
OURS = [Attack(name, text, "") for name, text in AIMED.items()]
# Beside each of them, so that a yaml without its attack would load.
MODEL = """
modules:
    encoder: !new:torch.nn.Linear [4, 3]
"""


def play_all(loader: str, attacks: list = ATTACKS) -> dict[str, dict]:
    """Load each of the attacks in a process of its own.

    Arguments
    ---------
    loader : str
        "data"; anything else is stock.
    attacks : list
        Attacks.

    Returns
    -------
    dict
        By name: ``did``, in words, and ``megabytes`` and ``seconds`` of the
        loading, of processor time."""
    # The processes are forks of this one, which has loaded an honest model
    # and imported what the attacks name.
    import speechbrain.inference.interfaces
    import speechbrain.lobes.features
    import speechbrain.lobes.models.CRDNN
    import speechbrain.lobes.models.HifiGAN
    import speechbrain.utils.parameter_transfer  # noqa: F401
    import torch

    import speechbrain_vq.lobes.wavenet  # noqa: F401
    from speechbrain_vq.hub import load_pretrained

    # Threads do not survive a fork.
    torch.set_num_threads(1)
    load_pretrained("units")
    return {attack.name: _fork(loader, attack) for attack in attacks}


def _fork(loader, attack):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        trace, note = folder / "trace", folder / "note.json"
        texts = {"hyperparams.yaml": attack.text, "weights.pt": "pickle"}
        texts["inc.yaml"] = ATTACKS[0].text
        if loader == "data":
            texts["hyperparams.yaml"] += MODEL
            _write_weights(folder / "model.safetensors")
        for name, text in texts.items():
            text = text.replace("CMD", "touch TRACE")
            (folder / name).write_text(text.replace("TRACE", "trace"))
        child = os.fork()
        if not child:
            try:
                _play(loader, folder, note)
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        ended = f"takes over {SECONDS} s"
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGXCPU:
            ended = f"takes over {MEMORY // 2**30} GiB"
        found = {"did": ended, "megabytes": None, "seconds": None}
        if note.exists() and note.stat().st_size:
            found = json.loads(note.read_text())
        if trace.exists():
            found["did"] = RUNS
        return found


def _play(loader, folder, note):
    os.chdir(folder)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = size * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, used + 60))
    seen = []
    sys.addaudithook(lambda event, args: _watch(seen, event, args))
    start = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    did = _load(loader, folder / "hyperparams.yaml")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "did": (seen + [did])[0],
        "megabytes": (after - before) / 1024,
        "seconds": time.process_time() - start,
    }
    note.write_text(json.dumps(found))


def _watch(seen, event, args):
    if event == "open" and str(args[0]).endswith(FOREIGN):
        seen.append(f"opens {args[0]}")
    elif event == "import" and args[0] == "this":
        seen.append("imports this")
    elif event in ("os.system", "subprocess.Popen"):
        seen.append(RUNS)


def _load(loader, path):
    from hyperpyyaml import load_hyperpyyaml

    from speechbrain_vq.hub import UnsafeHparamsError, load_pretrained

    try:
        if loader == "data":
            hparams = load_pretrained(path.parent)
        else:
            with open(path, encoding="utf-8") as file:
                hparams = load_hyperpyyaml(file)
        return f"hands out {hparams.get('x', hparams)!r}"[:99]
    except UnsafeHparamsError as error:
        return f"refuses: {error}"
    except MemoryError:
        return f"takes over {MEMORY // 2**30} GiB"
    except BaseException as error:
        if "allocate" in str(error):
            return f"takes over {MEMORY // 2**30} GiB"
        return f"raises {type(error).__name__}: {error}"[:99]


def _write_weights(path):
    import torch
    from safetensors.torch import save_file

    weights = {"encoder.weight": torch.ones(3, 4)}
    save_file({**weights, "encoder.bias": torch.ones(3)}, path)


if __name__ == "__main__":
    chosen = ATTACKS + (OURS if sys.argv[1] == "data" else [])
    found = json.dumps(play_all(sys.argv[1], chosen))
    pathlib.Path(sys.argv[2]).write_text(found)
