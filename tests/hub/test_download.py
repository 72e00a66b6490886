"""Files of one commit, from the cache where it has them, and never others."""

import re
import warnings

import huggingface_hub
import pytest

from speechbrain_vq.hub.download import FILES, download
from speechbrain_vq.hub.errors import HubError
from tests.hub.small_model import YAML, read_files, write_model

ID = "lab/model"


@pytest.fixture
def files(tmp_path):
    return read_files(write_model(tmp_path / "model"))


@pytest.fixture
def new_files(tmp_path):
    """Another model's, with a yaml of its own."""
    text = YAML + "new: true\n"
    return read_files(write_model(tmp_path / "new", seed=1, text=text))


def is_model(folder, files):
    """Whether a folder's yaml and weights are both of these files."""
    names = ("hyperparams.yaml", "model.safetensors")
    return all((folder / name).read_bytes() == files[name] for name in names)


# ---- folders


def test_a_folder_is_used_as_it_is(hub, tmp_path):
    folder = write_model(tmp_path / "model")
    assert download(folder) == folder and download(str(folder)) == folder
    assert not hub.log


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("model", {"revision": "v1"}, "no revision 'v1'"),
        ("model", {"savedir": "x.ckpt"}, "x.ckpt is a file, or"),
        ("x.ckpt", {}, "is a file"),
        *(
            (name, {}, "no folder .*organization/")
            for name in ("./mode", "/no/such", "a/b/c", "~/none", "a\\b", "no")
        ),
    ],
)
def test_what_names_no_model_is_reported_without_the_hub(
    hub, source, options, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    (tmp_path / "x.ckpt").write_text("mine")
    with pytest.raises((ValueError, OSError), match=message):
        download(source, **options)
    assert not hub.log and (tmp_path / "x.ckpt").read_text() == "mine"


def test_a_missing_model_is_met_with_what_is_near(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="Did you mean 'speech'"):
        download("speeech")
    run = tmp_path / "mine"
    (run / "model").mkdir(parents=True)
    (run / "hyperparams.yaml").touch()
    # It may be a name on the Hub, too.
    with pytest.raises(HubError, match="Did you mean 'mine/model'"):
        download("mine/mode")
    with pytest.raises(FileNotFoundError, match="a run, whose model is mine/m"):
        download("mine")


@pytest.mark.parametrize("name", ["hyperparams.yaml", "model.safetensors"])
def test_what_a_folder_lacks_is_named(tmp_path, name):
    folder = write_model(tmp_path / "model")
    (folder / name).rename(folder / "encoder.ckpt")
    with pytest.raises(FileNotFoundError, match=f"no {name}") as raised:
        download(folder)
    # Weights as a pickle come with the way out.
    way_out = re.search("encoder.ckpt.*save_file", str(raised.value))
    assert bool(way_out) == (name == "model.safetensors")


# ---- one commit


def test_all_files_are_of_one_commit(hub, files, new_files):
    old = hub.put(ID, files)
    new = hub.put(ID, new_files)
    assert is_model(download(ID), new_files) and download(ID).name == new
    assert download(ID, revision=old).name == old
    assert is_model(download(ID, revision=old), files)
    hub.repo(ID).refs["refs/tags/v1"] = old
    assert download(ID, revision="v1").name == old


def test_main_moves_during_the_download(hub, files, new_files):
    """The commit that moves it comes when the first file is asked for."""
    hub.put(ID, files)
    hub.before("/resolve/", lambda: hub.put(ID, new_files))
    folder = download(ID)
    assert hub.repo(ID).head() != folder.name and is_model(folder, files)
    assert is_model(download(ID), new_files)


def test_only_data_is_fetched(hub, files):
    extra = ("custom.py", "x.ckpt", "y.pt", "a/b.safetensors", "big.wav")
    hub.put(ID, {**files, **dict.fromkeys(extra, "x")})
    assert {p.name for p in download(ID).rglob("*")} == set(files) & set(FILES)
    requested = [path for _, path in hub.calls(path="/resolve/")]
    assert {path.rsplit("/")[-1] for path in requested} <= set(FILES)


def test_trusted_all_is_fetched_with_a_warning_unless_pinned(hub, files):
    commit = hub.put(ID, {**files, "custom.py": "x = 1"})
    with pytest.warns(UserWarning, match="may run its code"):
        folder = download(ID, trust_remote_code=True)
    assert (folder / "custom.py").is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        download(ID, revision=commit, trust_remote_code=True)


# ---- without the Hub


@pytest.mark.parametrize("by_environment", [False, True])
def test_offline_from_the_cache(hub, files, monkeypatch, by_environment):
    commit = hub.put(ID, files)
    folder = download(ID)
    hub.log.clear()
    download(ID, revision=commit, force_download=True)
    assert hub.calls("GET", "/resolve/")
    hub.log.clear()
    options = {"local_files_only": not by_environment}
    name = "HF_HUB_OFFLINE"
    monkeypatch.setattr(huggingface_hub.constants, name, by_environment)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert download(ID, **options) == folder
    with pytest.raises(HubError, match="completely in the cache.*HF_HUB"):
        download(ID, revision="v2", **options)
    assert not hub.log
    with pytest.raises(ValueError, match="contradict"):
        download(ID, local_files_only=True, force_download=True)
    # Its links are read.
    assert (folder / "model.safetensors").is_symlink()
    assert is_model(download(folder), files)


def test_what_others_left_in_the_cache_is_completed(hub, files):
    """SpeechBrain fetches file by file, and only those it wants."""
    commit = hub.put(ID, files)
    huggingface_hub.hf_hub_download(ID, "hyperparams.yaml")
    with pytest.raises(HubError, match="has no model.safetensors. If only"):
        download(ID, local_files_only=True)
    folder = download(ID, revision=commit)
    assert is_model(folder, files) and (folder / "config.json").is_file()


@pytest.mark.parametrize("how", ["gone", 500, 503, 429])
def test_away_the_cache_serves_and_says_which_commit(hub, files, how):
    commit = hub.put(ID, files)
    folder = download(ID)
    hub.put(ID, {"config.json": "{}"})
    if how == "gone":
        hub.stop()
    else:
        hub.fail(how, times=9)
    with pytest.warns(UserWarning, match=f"main.*as of commit {commit}"):
        assert download(ID) == folder
    with pytest.raises(HubError):
        download(ID, revision="other")
    hub.faults.clear()
    hub.fail(429, times=9)
    message = "cannot be reached" if how == "gone" else "error 429"
    with pytest.raises(HubError, match=message):
        download(ID, force_download=True)


@pytest.mark.parametrize("revision", [None, "0" * 40])
def test_away_and_nothing_in_the_cache(hub, revision, no_waiting):
    hub.stop()
    with pytest.raises(HubError, match="cannot be reached|not answer") as error:
        download(ID, revision=revision)
    assert error.value.__cause__ is not None


def test_a_download_that_breaks_leaves_no_half_model(hub, files):
    hub.put(ID, files)
    hub.cut("model.safetensors", after=100, times=99)
    with pytest.raises(HubError, match="try again"):
        download(ID)
    with pytest.raises(HubError):
        download(ID, local_files_only=True)
    hub.faults.clear()
    assert is_model(download(ID), files)


# ---- refusals, in words


@pytest.mark.parametrize("token", [None, "hf_bob", "hf_alice"])
def test_private(hub, files, token, monkeypatch):
    hub.put(ID, files, private=True)
    if token != "hf_alice":
        with pytest.raises(HubError, match="private and you have no access"):
            download(ID, token=token)
        return
    assert is_model(download(ID, token=token), files)
    monkeypatch.setenv("HF_TOKEN", token)
    assert is_model(download(ID, force_download=True), files)


def test_gated(hub, files):
    hub.put(ID, files, gated=True)
    with pytest.raises(HubError, match=f"gated: ask for access at .*{ID}"):
        download(ID, token="hf_bob")
    hub.repo(ID).granted.add("bob")
    assert is_model(download(ID, token="hf_bob"), files)


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("lab/none", {}, "no model 'lab/none'.*private.*log in"),
        (ID, {"token": "hf_nobody"}, "error 401.*that is valid"),
        (ID, {"revision": "v9"}, "no revision 'v9'"),
        (ID, {"revision": "f" * 40}, "no revision 'f{40}'"),
    ],
)
def test_what_is_wrong_is_not_cached_away(hub, files, source, options, message):
    hub.put(ID, files)
    download(ID)
    with pytest.raises(HubError, match=message):
        download(source, **options)


@pytest.mark.parametrize("name", ["hyperparams.yaml", "model.safetensors"])
def test_what_a_repository_lacks_is_named(hub, files, name):
    del files[name]
    commit = hub.put(ID, {**files, "model.ckpt": "x"})
    for revision in (None, commit):
        with pytest.raises(HubError, match=f"at commit {commit} has no {name}"):
            download(ID, revision=revision)


# ---- savedir


def test_savedir_is_never_of_another_revision(hub, files, new_files, tmp_path):
    old = hub.put(ID, {**files, "label_encoder.txt": "old"})
    hub.put(ID, {**new_files, "label_encoder.txt": None})
    savedir = tmp_path / "save"
    assert is_model(download(ID, savedir=savedir), new_files)
    assert is_model(download(ID, revision=old, savedir=savedir), files)
    assert (savedir / "label_encoder.txt").exists()
    assert is_model(download(ID, savedir=savedir), new_files)
    assert not (savedir / "label_encoder.txt").exists()
    # Another process may be reading a copy that is already there.
    inode = savedir.stat().st_ino
    assert download(ID, savedir=savedir).stat().st_ino == inode
    download(ID, savedir=savedir, force_download=True)
    assert savedir.stat().st_ino != inode
    assert not any(path.is_symlink() for path in savedir.iterdir())
    hub.stop()
    assert is_model(download(ID, revision=old, savedir=savedir), files)
    with pytest.raises(HubError):
        download(ID, revision="v2", savedir=savedir)
    assert is_model(download(savedir), files)


def test_savedir_of_a_folder_is_a_copy(tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("mine")
    folder = write_model(tmp_path / "model")
    savedir = download(folder, savedir=tmp_path / "save")
    assert is_model(savedir, read_files(folder))
    write_model(folder, seed=1)
    assert is_model(download(folder, savedir=savedir), read_files(folder))
    assert download(folder, savedir=folder) == folder
    with pytest.raises(FileExistsError, match="a new or an empty folder"):
        download(folder, savedir=tmp_path)
    names = ["model", "other.txt", "save"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert other.read_text() == "mine"


# ---- hostile


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "../../../evil/hyperparams.yaml", "/evil"]
)
def test_names_leading_out_are_not_written(hub, files, name, trusted, tmp_path):
    """The client refuses such names; without trust they are not asked for."""
    commit = hub.put(ID, {**files, name: "evil"})
    cache = tmp_path / "a" / "b" / "c" / "cache"
    how = {"revision": commit, "cache_dir": cache}
    if trusted:
        with pytest.raises(HubError, match="evil"):
            download(ID, trust_remote_code=True, **how)
    else:
        assert is_model(download(ID, **how), files)
    assert not hub.calls(path="evil") and not list(tmp_path.rglob("*evil*"))
    assert not list(tmp_path.parent.glob("*evil*"))
