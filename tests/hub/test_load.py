"""A stranger's model is built and loaded, and nothing of theirs runs."""

import json
import os
import struct
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file

from speechbrain_vq.hub import (
    HubError,
    UnsafeHparamsError,
    load_pretrained,
    register_module,
)
from speechbrain_vq.hub.folder import MARK, commit_of
from speechbrain_vq.hub.load import load_named
from speechbrain_vq.hub.registry import BUILDABLE
from tests.hub import small_model
from tests.hub.small_model import (
    Touch,
    holds,
    make_weights,
    read_files,
    write_model,
)

ID = "lab/model"


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def canary(tmp_path):
    """A file that hostile code would make."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def yaml_of(codebook):
    """The model's with another kind of codebook."""
    more = f"codebook_size: 8\n        codebook: {codebook}"
    return small_model.YAML.replace("codebook_size: 8", more)


def test_half_precision_weights_load(folder):
    half, path = make_weights(), folder / "model.safetensors"
    for name, value in half.items():
        half[name] = value.half() if value.is_floating_point() else value
    save_file(half, path)
    modules = load_pretrained(folder)["modules"]
    # They outlive their file.
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert modules["encoder"].weight.dtype == torch.float32
    assert torch.equal(modules["encoder"].weight.half(), half["encoder.weight"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"encoder.bias": None}, "'encoder.bias' is missing"),
        ({"encoder.more": torch.ones(1)}, "'encoder.more' is unknown"),
        ({"encoder.bias": torch.ones(4)}, r"shape \[4\], not \[3\]"),
        ({"quantizer._extra_state": torch.ones(1)}, "_extra_state' is unknown"),
        ({"encoder.bias": torch.tensor([0, torch.nan, 0])}, "are NaN or infin"),
        ({"encoder.bias": torch.full([3], torch.inf)}, "are NaN or infinite"),
        (
            {"encoder.bias": torch.full([3], torch.inf).bfloat16()},
            "'encoder.bias' have values that are NaN or infinite",
        ),
    ],
)
def test_is_strict_and_loads_nothing_otherwise(folder, change, message):
    weights = {**make_weights(), **change}
    weights = {key: v for key, v in weights.items() if v is not None}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


# ---- hostile


def test_trusted_the_yaml_may_run(hub, folder, tmp_path, caplog):
    load_pretrained(folder)
    assert not caplog.text
    trace = tmp_path / "trace"
    with open(folder / "hyperparams.yaml", "a") as file:
        file.write(f"x: !apply:os.system ['touch {trace}']\n")
    commit = hub.put(ID, read_files(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pretrained(ID, revision=commit, trust_remote_code=True)
        assert trace.exists()
        load_pretrained(folder, trust_remote_code=True)
    assert "SpeechBrain's loader reads" in caplog.text
    for revision in (None, "main", commit[:12]):
        if revision == commit[:12]:
            hub.repo(ID).refs[f"refs/tags/{revision}"] = commit
        with pytest.warns(UserWarning, match="all 40 characters"):
            load_pretrained(ID, revision=revision, trust_remote_code=True)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_pickle_for_weights_is_not_opened(hub, folder, canary, trusted):
    path = folder / "model.safetensors"
    torch.save({"encoder.bias": Touch(canary)}, path)
    hub.put(ID, read_files(folder))
    for source in (folder, hub.repo(ID).id):
        commit = None if source is folder else hub.repo(ID).head()
        with pytest.raises(ValueError, match="not a safetensors file"):
            load_pretrained(source, revision=commit, trust_remote_code=trusted)
    path.rename(folder / "model.ckpt")
    with pytest.raises(FileNotFoundError, match="can run code and are not"):
        load_pretrained(folder, trust_remote_code=trusted)


def header(entries, length=None):
    """The header of a safetensors file alone."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", length or len(text)) + text


def entry(*shape, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    "content, message",
    [
        (header({"t": entry(10**13 // 4, end=10**13)}), "damaged"),
        (header({}, length=10**13), "damaged"),
        (header({"t": entry(3, end=12)}), "damaged, or not a safetensors"),
        (b"", "damaged"),
        (b"\x00" * 100, "damaged"),
        # Of nothing but a header, which would have as many tensors built.
        *(
            (header({f"t{i}": entry(0, end=0) for i in range(n)}), message)
            for n, message in ((3000, "over 2048 ten"), (30000, "a header of"))
        ),
    ],
    ids="tensor header truncated empty zeros many endless".split(),
)
def test_damaged_weights_are_reported(folder, content, message):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


@pytest.fixture
def registered():
    """Registers a class for the time of a test."""
    before = dict(BUILDABLE)
    yield register_module
    BUILDABLE.clear()
    BUILDABLE.update(before)


class Windowed(torch.nn.Module):
    """Has tensors that are no weights: a buffer, an attribute, one in a list,
    a number that was computed, and a parameter in two places."""

    def __init__(self, size):
        super().__init__()
        self.linear = torch.nn.Linear(size, size)
        self.tied = torch.nn.Linear(size, size)
        self.tied.weight = self.linear.weight
        window = torch.hann_window(size)
        self.register_buffer("window", window, persistent=False)
        self.others = [2 * window]
        self.scale = 3 * window


class Summed(Windowed):
    """Cannot be built on the meta device."""

    def __init__(self, size):
        super().__init__(size)
        self.total = self.window.sum().item()


@pytest.mark.parametrize("cls", [Windowed, Summed])
def test_what_is_no_weight_is_as_it_was_constructed(folder, registered, cls):
    name = f"{__name__}.{cls.__name__}"
    yaml = f"modules:\n  net: !new:{name}\n    size: 6\n"
    (folder / "hyperparams.yaml").write_text(yaml)
    torch.manual_seed(0)
    net = cls(6)
    state = {f"net.{k}": v.clone() for k, v in net.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UnsafeHparamsError, match="register_module"):
        load_pretrained(folder)
    registered(cls)
    loaded = load_pretrained(folder)["modules"]["net"]
    assert holds({"net": loaded}, state)
    assert loaded.tied.weight is loaded.linear.weight
    mine, theirs = ((x.window, x.scale, *x.others) for x in (loaded, net))
    assert all(map(torch.equal, mine, theirs))
    assert vars(loaded).get("total") == vars(net).get("total")


def test_names_are_registered_once(registered):
    with pytest.raises(TypeError, match="torch.nn.Module class"):
        registered(int)
    with pytest.raises(ValueError, match="another name"):
        registered(Windowed, name="torch.nn.Linear")
    assert registered(name="lab.Net")(Windowed) is Windowed
    registered(Windowed, name="lab.Net")
    with pytest.raises(ValueError, match="another name"):
        registered(Summed, name="lab.Net")


def test_loading_does_not_import_the_compiler_of_pytorch():
    """It takes seconds, and meta tensors ask for it where nothing is done."""
    code = (
        "import sys; from speechbrain_vq.hub import load_pretrained\n"
        "load_pretrained('units')\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_a_loaded_codebook_trains(folder):
    for kind in ("gradient", "ema"):
        (folder / "hyperparams.yaml").write_text(yaml_of(kind))
        quantizer = load_pretrained(folder)["modules"]["quantizer"].train()
        x = torch.randn(2, 5, 3, requires_grad=True)
        quantizer(x).quantized.sum().backward()
        state = quantizer.state_dict().values()
        assert not any(tensor.is_meta for tensor in state)


# ---- arguments


def test_overrides_are_plain_values_of_the_yaml(folder):
    same_size = {"modules": {"quantizer": {"codebook_size": 8}}}
    changes = {"sample_rate": 8000, **same_size}
    for trusted in (False, True):
        options = {"overrides": changes, "trust_remote_code": trusted}
        assert load_pretrained(folder, **options)["sample_rate"] == 8000
    for wrong, message in (
        ({"rate": 1}, "No key 'rate'"),
        ({"modules": {"encoder": {"width": 1}}}, "No key 'width'"),
        ({"sample_rate": os.system}, "plain values"),
        ({"sample_rate": {"a": 1}}, "No key 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder, overrides=wrong)
    larger = {"modules": {"quantizer": {"codebook_size": 9}}}
    with pytest.raises(ValueError, match="does not fit"):
        load_pretrained(folder, overrides=larger)


def test_a_model_in_a_subfolder(hub, folder, tmp_path):
    where = tmp_path / "repo"
    where.mkdir()
    folder.rename(where / "best")
    files = {f"best/{k}": v for k, v in read_files(where / "best").items()}
    hub.put(ID, {**files, "other/model.safetensors": b"x"})
    for source, copy in ((where, None), (ID, None), (ID, tmp_path / "copy")):
        loaded = load_pretrained(source, subfolder="best", savedir=copy)
        assert holds(loaded["modules"], make_weights())
    assert not hub.calls(path="other")
    assert (tmp_path / "copy" / "model.safetensors").is_file()
    for source in (where, ID):
        with pytest.raises((FileNotFoundError, HubError), match="worst"):
            load_pretrained(source, subfolder="worst")


def test_shared_layers_do_not_let_others_allocate(folder):
    """Those of modules with weights are built again, on the CPU."""
    tied = "t: &t !new:torch.nn.Linear [2, 2]\nmodules: {a: *t, b: *t}\n"
    weights = {f"{k}.weight": torch.ones(2, 2) for k in "ab"}
    weights |= {f"{k}.bias": torch.ones(2) for k in "ab"}
    save_file(weights, folder / "model.safetensors")
    (folder / "hyperparams.yaml").write_text(tied)
    assert load_pretrained(folder)["modules"]["a"].weight.sum() == 4
    large = "x: !new:torch.nn.Linear [1048576, 1048576]\n"  # 4 TiB
    (folder / "hyperparams.yaml").write_text(tied + large)
    with pytest.raises(UnsafeHparamsError, match="'x' has a module that is"):
        load_pretrained(folder)
    with pytest.raises(UnsafeHparamsError, match="'x' has a module that is"):
        weights = {"top.0.weight": torch.ones(2, 2)}
        weights |= {"top.1.weight": torch.ones(2, 2)}
        weights |= {f"top.{k}.bias": torch.ones(2) for k in range(2)}
        save_file(weights, folder / "model.safetensors")
        text = "t: &t !new:torch.nn.Linear [2, 2]\n"
        text += "top: !new:torch.nn.ModuleList [[*t, *t]]\n" + large
        (folder / "hyperparams.yaml").write_text(text)
        load_named(folder, "top", folder / "model.safetensors")


@pytest.mark.parametrize(
    "content, commit",
    [
        ('{"commit": "%s"}' % ("ab" * 20), "ab" * 20),
        ('{"commit": "main"}', None),
        ("[1]", ValueError),
        ("[" * 200_000, ValueError),
        (" " * 2**21 + "{}", ValueError),
    ],
)
def test_the_commit_of_a_copy_is_read_as_data(folder, content, commit):
    (folder / MARK).write_text(content)
    if commit is ValueError:
        with pytest.raises(ValueError, match=f"{MARK} is not a JSON object"):
            commit_of(folder)
    else:
        assert commit_of(folder) == commit


@pytest.mark.parametrize("name", ["hyperparams.yaml", "model.safetensors"])
def test_links_out_of_the_folder_are_not_read(folder, name, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hunter2: [")
    (folder / MARK).symlink_to(secret)
    with pytest.raises(ValueError, match=f"is a link to {secret}"):
        commit_of(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    with pytest.raises(ValueError, match=f"is a link to {secret}") as raised:
        load_pretrained(folder)
    assert "hunter2" not in str(raised.value)


def test_a_yaml_that_names_weights_elsewhere_gets_those_beside_it(hub, folder):
    """Stock Pretrainers may point at another repository."""
    elsewhere = "lab/elsewhere"
    hub.put(elsewhere, {"encoder.ckpt": "x"})
    text = small_model.YAML.split("pretrainer:")[0] + (
        "pretrained_path: lab/elsewhere\n"
        "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer\n"
        "    loadables:\n"
        "        encoder: !ref <modules[encoder]>\n"
        "    paths:\n"
        "        encoder: !ref <pretrained_path>/encoder.ckpt\n"
    )
    (folder / "hyperparams.yaml").write_text(text)
    assert holds(load_pretrained(folder)["modules"], make_weights())
    assert not hub.calls(path=elsewhere)


# ---- of another time, and at another default precision


def test_weights_under_their_old_names_load(folder):
    weights = make_weights()
    book = weights.pop("quantizer.embedding.weight")
    old = {"quantizer.codewords.weight": book}
    save_file({**weights, **old}, folder / "model.safetensors")
    quantizer = load_pretrained(folder)["modules"]["quantizer"]
    assert torch.equal(quantizer.codebook, book)
    # Their epsilon has become a part of the variance.
    variance = weights["quantizer.norm.running_var"] + 1e-5
    assert torch.equal(quantizer.norm.running_var, variance)
    # Those of an EMA codebook came with its averages.
    (folder / "hyperparams.yaml").write_text(yaml_of("ema"))
    old["quantizer.codewords.ema_sum"] = book.clone()
    old["quantizer.codewords.ema_count"] = torch.ones(1, 8)
    save_file({**weights, **old}, folder / "model.safetensors")
    quantizer = load_pretrained(folder)["modules"]["quantizer"]
    assert torch.equal(quantizer.codebook, book)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("trusted", [False, True])
def test_state_of_the_process_changes_nothing_and_stays(folder, dtype, trusted):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    torch.set_default_dtype(dtype)
    hparams = load_pretrained(folder, trust_remote_code=trusted)
    for text in ("a: [1", "a: 1", "modules: {a: 1}", "- 1", ""):
        (folder / "hyperparams.yaml").write_text(text)
        with pytest.raises(ValueError, match="hyperparams.yaml"):
            load_pretrained(folder, trust_remote_code=trusted)
    assert torch.get_default_dtype() is dtype
    torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(3), expected)
    modules = hparams["modules"]
    assert modules["encoder"].weight.dtype is torch.float32
    assert holds(modules, make_weights())
