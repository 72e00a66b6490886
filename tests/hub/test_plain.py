"""A yaml is data: nothing that a stranger's asks for is run."""

import functools
import json
import pathlib
import subprocess
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_vq.hub import UnsafeHparamsError
from speechbrain_vq.hub.plain import MAX_BYTES, MAX_DEPTH, ModelYaml
from speechbrain_vq.hub.registry import BUILDABLE
from tests.hub.attacks import ATTACKS, OURS

ROOT = pathlib.Path(__file__).parents[2]
HONEST = """
n_mels: 40
ratio: 1e-05
large: 1_000
negative: -3
nothing:
on: true
words: [a, "b c", 'd']
numbers: [1, 2.5, -3]
pair: (1, 2.5, null, word)
path: results/model
size: !ref <n_mels>
linear: !new:torch.nn.Linear
    in_features: !ref <n_mels>
    out_features: 3
odd: !new:torch.nn.Linear [2, 3]
act: !new:torch.nn.ReLU
conv: !new:torch.nn.Conv2d
    in_channels: 1
    out_channels: 2
    kernel_size: (3, 1)
leaky: !name:torch.nn.LeakyReLU
    negative_slope: 0.2
speaker: !new:speechbrain.lobes.models.Xvector.Xvector
    in_channels: 4
    activation: !ref <leaky>
    tdnn_blocks: 1
    tdnn_channels: [4]
    tdnn_kernel_sizes: [3]
    tdnn_dilations: [1]
    lin_neurons: 3
shared: &shared !new:torch.nn.Linear [3, 3]
modules:
    first: !ref <linear>
    second: *shared
    third: *shared
    list: !new:torch.nn.ModuleList
        - [!ref <linear>, !ref <odd>]
"""


def read(tmp_path, text, **options):
    path = tmp_path / "hyperparams.yaml"
    path.write_text(text, encoding="utf-8")
    return ModelYaml(path, **options)


def load(tmp_path, text, **options):
    return read(tmp_path, text, **options).build("cpu")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "out.json"
    command = [sys.executable, "-m", "tests.hub.attacks", "data", str(path)]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", [attack.name for attack in ATTACKS + OURS])
def test_attack_is_refused(ours, name):
    did, megabytes, seconds = ours[name].values()
    assert did.startswith("refuses: ") and "hyperparams.yaml" in did
    assert "trust_remote_code=True" in did and megabytes < 100 and seconds < 1


# ---- honest


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
    elif isinstance(a, functools.partial):
        assert (a.func, a.args, a.keywords) == (b.func, b.args, b.keywords)
    else:
        assert type(a) is type(b) and a == b


def test_honest_yaml_is_as_stock(tmp_path):
    torch.manual_seed(0)
    mine = load(tmp_path, HONEST)
    torch.manual_seed(0)
    theirs = load_hyperpyyaml(HONEST)
    _same(mine, theirs)
    modules = mine["modules"]
    assert modules["first"] is mine["linear"] is modules["list"][0]
    assert modules["second"] is modules["third"] is mine["shared"]
    # HyperPyYAML has by now added its tuples to all loaders of the process.
    _same(load(tmp_path, HONEST)["pair"], theirs["pair"])


def test_only_the_pretrainer_of_speechbrain_is_not_looked_at(tmp_path):
    text = "a: 1\n{}: !new:some.Pretrainer\n    call: !name:os.system\n"
    assert load(tmp_path, text.format("pretrainer")) == {"a": 1}
    for other, message in (
        (text.format("trainer"), "some.Pretrainer"),
        ("a:\n  pretrainer: !new:some.Pretrainer", "some.Pretrainer"),
        ("!apply:os.system {a: 1}", "os.system"),
    ):
        with pytest.raises(UnsafeHparamsError, match=message):
            load(tmp_path, other)


def test_an_override_follows_references(tmp_path):
    changes = {"modules": {"first": {"out_features": 5}}}
    built = load(tmp_path, HONEST, overrides=changes)
    assert built["modules"]["first"] is built["linear"]
    assert built["linear"].out_features == 5


def test_every_buildable_class_is_there():
    for name, entry in BUILDABLE.items():
        assert issubclass(entry.find(), torch.nn.Module), name


@pytest.mark.parametrize(
    "content",
    [b"", b"# none", b"- 1", b"a/path", b"a: [1", b"a: 1\n\tb: 2", b"a: \xff"],
)
def test_what_is_no_mapping_is_named(tmp_path, content):
    path = tmp_path / "hyperparams.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="hyperparams.yaml"):
        ModelYaml(path)


def test_refusal_names_place_and_way_out(tmp_path):
    with pytest.raises(UnsafeHparamsError) as info:
        read(tmp_path, "a: 1\nb:\n  - x\n  - !apply:os.system [ls]\n")
    path = tmp_path / "hyperparams.yaml"
    assert f"{path}, line 4, column 5: !apply:os.system" in str(info.value)
    assert "register_module" in str(info.value)


def test_what_a_class_does_not_take_is_named(tmp_path):
    for arguments in ("[2]", "{in_features: 2, width: 3}", "[two, 3]"):
        text = f"a: 1\nb: !new:torch.nn.Linear {arguments}"
        with pytest.raises(ValueError, match="line 2: torch.nn.Linear cannot"):
            load(tmp_path, text)


# ---- bounds


def test_size_and_depth_are_bounded(tmp_path):
    def nested(depth):
        return "x: " + "[" * depth + "]" * depth

    load(tmp_path, nested(MAX_DEPTH - 1))
    with pytest.raises(UnsafeHparamsError, match="deep"):
        load(tmp_path, nested(MAX_DEPTH + 1))
    load(tmp_path, "x: " + "a" * (MAX_BYTES - 3))
    with pytest.raises(UnsafeHparamsError, match="bytes"):
        load(tmp_path, "x: " + "a" * MAX_BYTES)


def test_aliases_count_as_often_as_they_are_there(tmp_path):
    text = "a: &a [1, 2, 3]\nb: [" + "*a, " * 50 + "]"
    assert load(tmp_path, text)["b"] == [[1, 2, 3]] * 50
    text = "a: &a [" + "1, " * 200 + "]\nb: [" + "*a, " * 50 + "]"
    with pytest.raises(UnsafeHparamsError, match="more than"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "!new:torch.nn.Linear [2, 1048577]",
        "!new:torch.nn.Linear [2, -1048577]",
        "!new:torch.nn.Dropout [.nan]",
        "!name:torch.nn.LeakyReLU [.inf]",
        "!new:torch.nn.Conv1d [1, 1, [3000000]]",
        "!new:speechbrain_vq.lobes.features.LogMel {n_mels: 513}",
        "!new:speechbrain_vq.nnet.VectorQuantizer [1, 1, 1, 257]",
        "!new:speechbrain_vq.nnet.ResidualVectorQuantizer [257, 1, 1]",
    ],
)
def test_arguments_are_bounded(tmp_path, text):
    with pytest.raises(UnsafeHparamsError, match="out of bounds"):
        load(tmp_path, f"x: {text}")


def test_the_number_of_tensors_is_bounded_by_that_of_the_weights(tmp_path):
    # Four tensors a layer.
    text = "x: !new:torch.nn.LSTM [1, 1, {}]"
    with pytest.raises(UnsafeHparamsError, match="more tensors than"):
        read(tmp_path, text.format(1000)).build("meta", 4)
    module = read(tmp_path, text.format(500)).build("meta", 2000)["x"]
    assert module.num_layers == 500
    with pytest.raises(UnsafeHparamsError, match="over 2048 tensors"):
        read(tmp_path, "a: 1").build("meta", 2049)


def test_nothing_of_another_package_is_imported(tmp_path):
    code = (
        "import sys; from speechbrain_vq.hub.plain import *\n"
        "before = set(sys.modules)\n"
        "for name in ('this.x', 'antigravity.x', 'torch.onnx.x',"
        " 'speechbrain.integrations.nlp.x', 'speechbrain.nnet.RNN.LSTM'):\n"
        "    open('m.yaml', 'w').write(f'x: !new:{name}')\n"
        "    try: ModelYaml('m.yaml').build()\n"
        "    except UnsafeHparamsError: continue\n"
        "    sys.exit(name)\n"
        "sys.exit(str(set(sys.modules) - before or '') or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
