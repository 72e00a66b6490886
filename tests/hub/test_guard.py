"""Nothing that a stranger's yaml asks for is run; honest ones load as ever.

Authors
 * speechbrain_vq authors 2026
"""

import ast
import copy
import importlib
import inspect
import json
import pathlib
import pkgutil
import subprocess
import sys
import threading

import pytest
import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_vq.hub import UnsafeHparamsError, load_hparams_safely
from speechbrain_vq.hub.memory import COUNTED, TensorLimit
from speechbrain_vq.hub.names import ALLOWED, Refusal
from tests.hub.attacks import ATTACKS, TAKES

NAMES = [attack.name for attack in ATTACKS]
HONEST = """
n_mels: 40
width: !ref <n_mels> * 2 // 4
ratio: !ref <n_mels> / 3
power: !ref 2 ** 10 - <n_mels>
words: (a, b)
numbers: (1, 2.5, -3)
mixed: (true, None, 1e3, "x y")
pair: !ref (<n_mels>, 3)
path: !ref results/<n_mels>
day: 2026-11-22
act: !name:torch.nn.ReLU
leaky: !name:torch.nn.LeakyReLU
    negative_slope: 0.2
loss: !name:speechbrain.nnet.losses.nll_loss
linear: !new:speechbrain.nnet.linear.Linear
    input_size: !ref <n_mels>
    n_neurons: !ref <width>
odd: !new:torch.nn.functional.torch.nn.Linear [2,3]
weight: !ref <odd.weight>
size: !ref <odd.out_features>
inner: !ref <linear.w>
twin: !copy <linear>
modules: !new:torch.nn.ModuleList
    - [!ref <linear>, !ref <odd>]
base: &base {a: 1, b: 2}
derived: {<<: *base, b: 3}
quantizer: !new:speechbrain_vq.VectorQuantizer [8, 16]
crdnn: !new:speechbrain.lobes.models.CRDNN.CRDNN
    input_shape: [null, null, 40]
    activation: !ref <leaky>
    cnn_blocks: 1
    cnn_channels: (4,)
    rnn_layers: 1
    rnn_neurons: 8
    dnn_blocks: 1
    dnn_neurons: 8
"""
# As the speaker models that SpeechBrain publishes, but small.
SPEAKER = """
pretrained_path: speechbrain/spkrec
n_mels: 20
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [16, 16, 16, 16, 48]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    lin_neurons: 12
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 12
    out_neurons: 7
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
modules:
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        label_encoder: !ref <label_encoder>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
"""


@pytest.fixture(autouse=True)
def fresh_ruamel():
    """HyperPyYAML adds its tuples to all loaders of the process, and then
    makes strings of those that references give."""
    resolvers = ruamel.yaml.resolver.implicit_resolvers
    resolvers[:] = [entry for entry in resolvers if entry[1] != "!tuple"]


def _play(loader, path):
    command = [sys.executable, "-m", "tests.hub.attacks", loader, str(path)]
    root = pathlib.Path(__file__).parents[2]
    subprocess.run(command, check=True, cwd=root)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    return _play("guard", tmp_path_factory.mktemp("guard") / "out.json")


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return _play("quick", tmp_path_factory.mktemp("stock") / "out.json")


@pytest.mark.parametrize("name", NAMES)
def test_attack_is_refused(guarded, name):
    found = guarded[name]
    assert found["did"].startswith("refuses: ")
    assert "hyperparams.yaml" in found["did"]
    assert "trust_remote_code=True" in found["did"]
    assert found["megabytes"] < 300


@pytest.mark.parametrize(
    "attack", [a for a in ATTACKS if a.stock != TAKES], ids=lambda a: a.name
)
def test_attack_is_one(stock, attack):
    assert stock[attack.name]["did"].startswith(attack.stock)


@pytest.mark.parametrize(
    "name", ["../a", "a/b", "a\\\\b", "..", "C:a", "", "1"]
)
def test_loadables_have_plain_names(name):
    shown = name if name == "1" else f'"{name}"'
    text = (
        "a: !new:torch.nn.Linear [2, 3]\n"
        "x: !new:speechbrain.utils.parameter_transfer.Pretrainer\n"
        f"    loadables: {{{shown}: !ref <a>}}"
    )
    with pytest.raises(UnsafeHparamsError, match="is not a plain name"):
        load_hparams_safely(text)


def test_merges_are_counted_together_and_honest_ones_load():
    text = "a: &a {i: 1, j: 2}\nx:\n" + "- {<<: *a, i: 3}\n" * 50
    ours, stock = _both(text)
    assert ours == stock
    with pytest.raises(UnsafeHparamsError, match="multiply"):
        load_hparams_safely(text + "- {<<: *a, i: 3}\n" * 600)


@pytest.mark.parametrize(
    "inner", ["&a 1, 2", "&a [1], *a", "{a: 1}", "a: 1", "1," * 2**12]
)
def test_tuples_hold_what_cannot_multiply(inner):
    with pytest.raises(UnsafeHparamsError):
        load_hparams_safely(f'x: !tuple "({inner})"')


def test_references_that_nothing_closes_are_counted():
    with pytest.raises(UnsafeHparamsError, match="references in one string"):
        load_hparams_safely('x: !ref "' + "<" * 4000 + '"')
    assert load_hparams_safely("a: 1\nx: !ref <a> < 2")["x"] == "1 < 2"


def test_tuple_of_lists_is_as_stock():
    ours, stock = _both("x: (1, [2, [a, null]])")
    assert ours == stock == {"x": (1, [2, ["a", None]])}


@pytest.mark.parametrize(
    "text", ["some/hyperparams.yaml", "", "# none", "- 1", "!!set {a, b}"]
)
def test_what_is_no_mapping_is_said(text):
    with pytest.raises(ValueError, match="no mapping|no model needs") as info:
        load_hparams_safely(text)
    if not text.startswith("!!"):
        assert "pathlib.Path" in str(info.value)


def test_modules_are_counted_in_their_thread_and_no_longer():
    before = [getattr(torch.nn.Module, name) for name in COUNTED]
    layer = torch.nn.Identity()
    with TensorLimit(2**20) as limit, TensorLimit(2**20) as inner:
        other = threading.Thread(target=copy.deepcopy, args=(layer,))
        other.start(), other.join()
        assert inner.parts == 0
        copy.deepcopy(layer)
        torch.nn.Linear(1, 1)
        assert (inner.parts, limit.parts) == (4, 0)
    assert [getattr(torch.nn.Module, name) for name in COUNTED] == before
    with pytest.raises(Refusal, match="modules"), TensorLimit(2**20):
        while True:
            copy.deepcopy(layer)
    assert [getattr(torch.nn.Module, name) for name in COUNTED] == before


def _same(a, b):
    if isinstance(a, torch.nn.Module):
        assert type(a) is type(b) and str(a) == str(b)
        a, b = a.state_dict(), b.state_dict()
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            _same(a[key], b[key])
    elif type(a).__module__ == "builtins":
        assert a == b
    else:
        assert type(a) is type(b)


def _both(text, *args):
    torch.manual_seed(0)
    ours = load_hparams_safely(text, *args)
    torch.manual_seed(0)
    return ours, load_hyperpyyaml(text, *args)


@pytest.mark.parametrize(
    "overrides", [None, {"n_mels": 30}, "n_mels: 30\nwords: !ref <n_mels>"]
)
def test_honest_yaml_is_as_stock(overrides):
    ours, stock = _both(HONEST, overrides)
    assert ours["pair"] == (ours["n_mels"], 3)
    _same(ours, stock)
    assert ours["modules"][0] is ours["linear"]
    assert ours["linear"] is not ours["twin"]


def test_published_speaker_model_loads():
    ours, stock = _both(SPEAKER)
    _same(ours, stock)
    assert set(ours["pretrainer"].loadables) == set(
        stock["pretrainer"].loadables
    )
    # From where the yaml came from, and from nowhere else.
    assert stock["pretrainer"].paths and not ours["pretrainer"].paths


def test_exported_modules_load():
    path = "recipes/MiniSpeech/unit-discovery/hparams/train.yaml"
    root = pathlib.Path(__file__).parents[2]
    with open(root / path, encoding="utf-8") as file:
        training = ruamel.yaml.YAML().load(
            load_hyperpyyaml.__globals__["resolve_references"](
                file, {"data_folder": "."}
            )
        )
    kept = {key: training[key] for key in ("sample_rate", "modules")}
    text = ruamel.yaml.compat.StringIO()
    ruamel.yaml.YAML().dump(kept, text)
    text = text.getvalue() + (
        "pretrainer: !new:speechbrain_vq.hub.pretrainer.WeightsPretrainer\n"
        "    modules: !ref <modules>\n"
    )
    ours, stock = _both(text)
    _same(ours, stock)
    assert ours["pretrainer"].modules is not None


def test_refusal_says_what_and_where(tmp_path):
    path = tmp_path / "hyperparams.yaml"
    path.write_text("a: 1\nb:\n  - x\n  - !apply:os.system [ls]\n")
    with open(path, encoding="utf-8") as file:
        with pytest.raises(UnsafeHparamsError) as info:
            load_hparams_safely(file)
    error = info.value
    assert (error.file, error.line, error.column) == (str(path), 4, 5)
    assert error.tag == "!apply:os.system"
    assert f"{path}, line 4, column 5: !apply:os.system" in str(error)


def test_overrides_are_looked_at_too():
    text = "a: 1\nb: (1, 2)"
    for overrides in (
        {"b": "(!!python/object/apply:os.getcwd [],)"},
        "b: !apply:os.getcwd []",
        "b: !applyref:os.getcwd []",
        "b: !include:/etc/passwd",
    ):
        with pytest.raises(UnsafeHparamsError):
            load_hparams_safely(text, overrides)


def test_list_can_be_longer():
    text = "a: !new:collections.Counter {b: 3}"
    with pytest.raises(UnsafeHparamsError, match="not on the list"):
        load_hparams_safely(text)
    ours = load_hparams_safely(text, allowed=(*ALLOWED, "collections.Counter"))
    assert ours["a"] == {"b": 3}


def test_nothing_foreign_is_imported():
    code = (
        "import sys; from speechbrain_vq.hub.guard import *\n"
        "before = set(sys.modules)\n"
        "for name in ('this', 'speechbrain.integrations.nlp.x', 'torch.onnx.x',"
        " 'speechbrain.nnet.loss.transducer_loss.x', 'antigravity.x'):\n"
        "    try: load_hparams_safely(f'x: !name:{name}')\n"
        "    except UnsafeHparamsError: continue\n"
        "    sys.exit(name)\n"
        "new = set(sys.modules) - before\n"
        "bad = ('this', 'antigravity', 'speechbrain.integrations',"
        " 'torch.onnx.', 'numba')\n"
        "sys.exit(str([m for m in new if m.startswith(bad)] or '') or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loaders_of_others_stay_as_they_were():
    resolvers = len(ruamel.yaml.resolver.implicit_resolvers)
    construct = ruamel.yaml.constructor.BaseConstructor.construct_object
    with pytest.raises(UnsafeHparamsError):
        load_hparams_safely("a: !new:torch.nn.Linear [2, 3]\nx: !ref <a.apply>")
    assert construct.__defaults__ == (False,)
    assert len(ruamel.yaml.resolver.implicit_resolvers) == resolvers


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.empty(2**20),
        lambda: torch.empty(2**22, dtype=torch.uint8),
        lambda: torch.Tensor(2**10, 2**10),
        lambda: torch.arange(2**20),
        lambda: torch.hann_window(2**20),
        lambda: torch.ones(1).expand(2**20).clone(),
        lambda: torch.ones(2**10, 1) + torch.ones(2**10),
        lambda: torch.ones(4).repeat(2**18),
        lambda: torch.ones(1).resize_(2**20),
        lambda: torch.ones(1).new_zeros(2**20),
        lambda: torch.randn(2**20, generator=torch.Generator()),
        lambda: [torch.empty(2**10) for _ in range(2**10)],
    ],
)
def test_tensors_are_limited(ask):
    with pytest.raises(Refusal), TensorLimit(2**21):
        ask()
    with TensorLimit(2**25):
        ask()


def test_views_and_small_change_are_free():
    with TensorLimit(2**13):
        big = torch.ones(1).expand(2**40)
        for _ in range(100):
            big.view(2**20, 2**20).t()
            torch.ones(1)


def test_swallowed_refusal_counts():
    limit = TensorLimit(2**10)
    with limit:
        try:
            torch.empty(2**20)
        except Refusal:
            pass
    with pytest.raises(Refusal):
        limit.check()


def test_allowed_modules_read_no_files():
    """SpeechBrain may change: what it builds must not open or fetch."""
    bad = {"open", "eval", "exec", "fetch", "download", "from_pretrained"}
    bad |= {"__import__", "import_module", "torch.load", "pickle.load"}
    # Called by a Pretrainer or Checkpointer, with its own path.
    hooks = {"_load", "_save"}
    for module in _modules():
        tree = ast.parse(inspect.getsource(module))
        skipped = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name in hooks
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in skipped:
                name = ast.unparse(node.func)
                assert name not in bad, f"{module.__name__}:{node.lineno}"


def _modules():
    for name in ALLOWED:
        parent = name.rpartition(".")[0]
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(
                importlib.import_module(parent), name[len(parent) + 1 :]
            )
            continue
        yield module
        if name.startswith("speechbrain_vq") and hasattr(module, "__path__"):
            for found in pkgutil.iter_modules(module.__path__, name + "."):
                yield importlib.import_module(found.name)
