"""One commit with all files, or none, and why."""

import re
import shutil

import pytest

from speechbrain_vq import push_to_hub
from speechbrain_vq.hub import HubError, load_pretrained
from speechbrain_vq.publish.card import replace_source
from tests.commands import cli
from tests.hub.small_model import holds, make_weights, read_files, write_model

ID = "lab/model"


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture(autouse=True)
def login(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")


def is_same(hub, folder, repo_id=ID, revision="main"):
    """Whether the repository has the folder's files, byte for byte."""
    pushed = hub.repo(repo_id).files(revision)
    pushed.pop(".gitattributes")
    expected = read_files(folder)
    card = expected["README.md"].decode()
    expected["README.md"] = replace_source(card, folder.name, repo_id).encode()
    return pushed == expected


def commits(hub):
    return len(hub.repo(ID).commits())


def test_one_commit_with_all_files(hub, folder):
    url = push_to_hub(folder, ID, commit_description="Long")
    assert url == f"{hub.url}/{ID}/commit/{hub.repo(ID).head()}"
    assert hub.repo(ID).commits()[0].message == "Long" and is_same(hub, folder)
    assert len(hub.calls("POST", "/commit/")) == 1 and not hub.repo(ID).private
    loaded = load_pretrained(ID, revision=url.split("/")[-1])
    assert holds(loaded["modules"], make_weights())


def test_the_card_loads_the_model_from_where_it_is_and_no_other(hub, folder):
    code = """
tokenizer = VQTokenizer.from_hparams("{}")  # this model
hifigan = HIFIGAN.from_hparams("speechbrain/tts-hifigan-libritts-16kHz")
other = VQTokenizer.from_hparams("model")
"""
    (folder / "README.md").write_text(code.format("anything"))
    push_to_hub(folder, ID)
    assert hub.repo(ID).files()["README.md"].decode() == code.format(ID)


def test_only_what_changed_is_sent(hub, folder, caplog):
    url, before = push_to_hub(folder, ID), commits(hub)
    hub.log.clear()
    assert push_to_hub(folder, ID) == url and commits(hub) == before
    assert not hub.calls("POST", "/commit/")
    assert "No files have been modified" in caplog.text
    # What others put there stays.
    hub.put(ID, {"LICENSE": "theirs"})
    (folder / "config.json").write_text("{}")
    push_to_hub(folder, ID)
    assert not hub.calls("PUT")
    files = hub.repo(ID).files()
    assert files["config.json"] == b"{}" and files["LICENSE"] == b"theirs"


def test_files_of_an_earlier_export_are_deleted(hub, folder):
    names = ("label_encoder.txt", "example.wav", "codebook_usage.png")
    for name in names:
        (folder / name).write_text("old")
    (folder / "LICENSE").write_text("mine")
    push_to_hub(folder, ID, files=["LICENSE"])
    assert set(names) <= set(hub.repo(ID).files())
    for name in (*names, "LICENSE"):
        (folder / name).unlink()
    number = commits(hub)
    push_to_hub(folder, ID)
    files = hub.repo(ID).files()
    assert not set(names) & set(files) and files["LICENSE"] == b"mine"
    push_to_hub(folder, ID)
    assert commits(hub) == number + 1


def test_files_of_another_kind_of_model_stay(hub, folder):
    hub.put(ID, {"example.wav": "theirs", "hyperparams.yaml": "theirs"})
    push_to_hub(folder, ID)
    assert hub.repo(ID).files()["example.wav"] == b"theirs"


def test_branch(hub, folder):
    main_head = hub.put(ID)
    push_to_hub(folder, ID, revision="next")
    assert is_same(hub, folder, revision="next")
    push_to_hub(folder, ID, revision="next")
    assert hub.repo(ID).head() == main_head
    assert len(hub.repo(ID).commits("next")) == commits(hub) + 1


def test_pull_request(hub, folder):
    head = hub.put("bob/model", {"README.md": "hi"})
    url = push_to_hub(folder, "bob/model", create_pr=True)
    assert url == f"{hub.url}/bob/model/discussions/1"
    assert is_same(hub, folder, "bob/model", "refs/pr/1")
    assert hub.repo("bob/model").head() == head


def test_tag(hub, folder):
    hub.fail(500, "POST", "/tag/")
    with pytest.raises(HubError, match="error 500.*has all of the commit"):
        push_to_hub(folder, ID, tag="v1")
    push_to_hub(folder, ID, tag="v1")
    first = hub.repo(ID).head()
    assert hub.repo(ID).refs["refs/tags/v1"] == first
    push_to_hub(folder, ID, tag="again")
    assert hub.repo(ID).refs["refs/tags/again"] == first
    assert hub.repo(ID).head() == first


def test_a_tag_is_never_moved(hub, folder):
    push_to_hub(folder, ID, tag="v1")
    first = hub.repo(ID).head()
    write_model(folder, seed=1)
    with pytest.raises(HubError, match="Nothing was pushed.*'v1' already"):
        push_to_hub(folder, ID, tag="v1")
    assert hub.repo(ID).head() == first
    assert hub.repo(ID).refs["refs/tags/v1"] == first


# ---- what is refused before anything is asked


def replaced(old, new):
    def change(folder):
        path = folder / "hyperparams.yaml"
        path.write_text(path.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    "change, options, message",
    [
        *(
            (lambda folder, name=name: (folder / name).unlink(), {}, name)
            for name in ("hyperparams.yaml", "model.safetensors", "README.md")
        ),
        (shutil.rmtree, {}, "There is no folder"),
        (replaced("modules:", "x: !apply:os.system [ls]\nmodules:"), {}, "ref"),
        (replaced("features: 3", "features: 5"), {}, "does not fit"),
        (
            lambda folder: (folder / "example.wav").symlink_to("/etc/passwd"),
            *({}, "example.wav is a link"),
        ),
        *(
            (
                lambda folder: (folder.parent / "other.txt").touch(),
                *({"files": [name]}, message),
            )
            for name, message in (
                ("LICENSE", "there is no LICENSE"),
                ("../other.txt", "outside its folder"),
            )
        ),
        (None, {"repo_id": "model"}, "lacks its owner"),
        (None, {"repo_id": "a/b/c"}, "cannot be a repository"),
        (None, {"create_pr": True, "tag": "v1"}, "once it is merged"),
        (None, {"token": False}, "requires a token with write acc"),
        ("logged out", {}, "requires a token with write acc"),
    ],
)
def test_what_cannot_be_pushed_is_told_without_the_hub(
    hub, folder, change, options, message, monkeypatch
):
    if callable(change):
        change(folder)
    elif change:
        monkeypatch.delenv("HF_TOKEN")
    errors = (HubError, FileNotFoundError, ValueError)
    with pytest.raises(errors, match=message):
        push_to_hub(folder, **{"repo_id": ID, **options})
    assert not hub.log


@pytest.mark.parametrize(
    "name",
    ["custom.PY", "model.ckpt", "x.pickle", "x.ipynb", "x.so", "hf_token.txt"]
    + ["plots/a.png", "vocoder/model.safetensors"],
)
def test_only_files_of_ours_or_named_ones_are_pushed(hub, folder, name):
    expected = {*read_files(folder), ".gitattributes", name}
    # Those of other programs are never pushed.
    for file in (name, ".git/config", ".DS_Store"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("x")
    push_to_hub(folder, ID)
    assert set(hub.repo(ID).files()) == expected - {name}
    # A folder stands for its files, but for hidden ones.
    (folder / name).with_name(".secret").write_text("x")
    push_to_hub(folder, ID, files=[name.split("/")[0]])
    assert hub.repo(ID).files()[name] == b"x"
    assert set(hub.repo(ID).files()) == expected


def test_the_vocoder_of_a_model_is_pushed(hub, folder):
    write_model(folder / "gan")
    with open(folder / "hyperparams.yaml", "a") as file:
        file.write("vocoder: gan\n")
    push_to_hub(folder, ID)
    assert "gan/model.safetensors" in hub.repo(ID).files()


# ---- refusals of the Hub, in words


NO_RIGHT = "requires a token with write access.*--create-pr"


@pytest.mark.parametrize(
    "repo, there, options, message",
    [
        # Whether it is there, public or private.
        (
            ID,
            None,
            {"token": "hf_nobody"},
            "error 401.*that is valid(?!.*again)",
        ),
        (ID, None, {"token": "hf_alice_read"}, NO_RIGHT),
        (ID, "public", {"token": "hf_alice_read"}, NO_RIGHT),
        (ID, "public", {"private": True}, "exists and is public"),
        (
            *(ID, "public", {"revision": "no..where", "create_pr": True}),
            "^(?!.*Push again)",
        ),
        (ID, "public", {"revision": "a..b"}, "^(?!.*Push again)"),
        *(("bob/model", x, {}, NO_RIGHT) for x in (None, "private", "public")),
    ],
)
def test_what_the_hub_forbids(hub, folder, repo, there, options, message):
    head = there and hub.put(repo, private=there == "private")
    # Whether a name is one of git's, the Hub says.
    hub.fail(400, "POST", "/branch/")
    with pytest.raises(HubError, match=re.compile(message, re.S)):
        push_to_hub(folder, repo, **options)
    assert hub.repo(repo).head() == head if there else not hub.repos


def test_the_card_is_refused(hub, folder):
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    head = hub.put(ID)
    with pytest.raises(HubError, match="Invalid metadata in README.md"):
        push_to_hub(folder, ID)
    assert hub.repo(ID).head() == head


def test_the_commit_follows_the_one_that_was_seen(hub, folder):
    """Else what they changed and we did not would be mixed into ours."""
    push_to_hub(folder, ID)
    theirs = {"hyperparams.yaml": "theirs: true"}
    hub.before("/preupload/", lambda: hub.put(ID, theirs))
    (folder / "config.json").write_text("{}")
    with pytest.raises(HubError, match="Someone else pushed"):
        push_to_hub(folder, ID)
    assert hub.repo(ID).files()["config.json"] != b"{}"


AGAIN = "Push again"
STEPS = ("/api/repos/create", "/preupload/", "/objects/batch", "/commit/")


@pytest.mark.parametrize(
    "status, where, message",
    [
        *((429, step, f"error 429.*{AGAIN}") for step in STEPS),
        *((500, step, f"error 500.*{AGAIN}") for step in STEPS),
        (412, "/commit/", "Someone else pushed"),
        (403, "/presigned/", "requires a token with write access"),
        (500, "/presigned/", "error 500"),
    ],
)
def test_trouble_harms_nothing(hub, folder, status, where, message, no_waiting):
    before = hub.put(ID)
    hub.fail(status, None, where, times=99)
    with pytest.raises(HubError, match=message):
        push_to_hub(folder, ID)
    assert hub.repo(ID).head() == before
    hub.faults.clear()
    push_to_hub(folder, ID)
    assert is_same(hub, folder) and commits(hub) == 3


def test_cut_after_the_commit_the_same_again_is_enough(hub, folder):
    hub.put(ID)
    hub.cut("/commit/", method="POST")
    with pytest.raises(HubError, match="unchanged, or has all of the commit"):
        push_to_hub(folder, ID, tag="v1")
    assert is_same(hub, folder)
    url = push_to_hub(folder, ID, tag="v1")
    assert url.endswith(hub.repo(ID).head()) and commits(hub) == 3
    assert hub.repo(ID).refs["refs/tags/v1"] == hub.repo(ID).head()


# ---- the command


def test_command(hub, folder):
    (folder / "LICENSE").write_text("mine")
    options = ["--tag", "v1", "--message", "Hi", "--file", "LICENSE"]
    result = cli("push", folder, ID, *options, "--private")
    last = result.stdout.splitlines()[-1]
    assert last == f"{hub.url}/{ID}/commit/{hub.repo(ID).head()}"
    assert hub.repo(ID).private and hub.repo(ID).commits()[0].title == "Hi"
    assert hub.repo(ID).files()["LICENSE"] == b"mine"
    result = cli("push", folder, "bob/model", "--file=LICENSE", code=1)
    assert "requires a token with write access" in result.stderr
