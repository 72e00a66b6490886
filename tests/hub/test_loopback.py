"""The unmodified client does with the loopback Hub what it does with the Hub."""

import os
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request

import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    HfFileSystem,
    ModelCard,
    constants,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

WEIGHTS = "model.safetensors"


pytestmark = [
    pytest.mark.usefixtures("no_waiting"),
    # The client's own way of sending bytes.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def contents(folder):
    folder = pathlib.Path(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def status(error):
    return error.value.response.status_code


# ---- push


def test_a_folder_comes_back_as_it_was(hub, pushed, folder):
    got = contents(snapshot_download("lab/model"))
    assert got.pop(".gitattributes")
    assert got == contents(folder)
    assert len(hub.calls("PUT", "/presigned/")) == 1
    assert hub.repo("lab/model").head() == pushed


def test_nothing_is_committed_where_nothing_changed(hub, api, pushed, folder):
    again = api.upload_folder(repo_id="lab/model", folder_path=folder)
    assert again.oid == pushed
    assert len(hub.repo("lab/model").commits()) == 3
    assert len(hub.calls("PUT", "/presigned/")) == 1


def test_only_what_changed_is_committed(hub, api, pushed, folder):
    (folder / "config.json").write_text("[]")
    api.upload_folder(repo_id="lab/model", folder_path=folder)
    repo = hub.repo("lab/model")
    new, old = repo.commits()[:2]
    assert {p for p in new.files if new.files[p] != old.files[p]} == {
        "config.json"
    }
    assert len(hub.calls("PUT", "/presigned/")) == 1


def test_files_are_added_and_deleted_one_by_one(hub, api, pushed):
    api.upload_file(
        repo_id="lab/model", path_or_fileobj=b"new", path_in_repo="new.txt"
    )
    api.delete_file(repo_id="lab/model", path_in_repo="config.json")
    api.delete_folder(repo_id="lab/model", path_in_repo="sub")
    assert set(hub.repo("lab/model").files()) == {
        ".gitattributes",
        "README.md",
        "new.txt",
        WEIGHTS,
    }
    with pytest.raises(RemoteEntryNotFoundError):
        api.delete_file(repo_id="lab/model", path_in_repo="config.json")


def test_a_commit_on_an_old_parent_is_refused(api, pushed):
    add = {"path_or_fileobj": b"1", "path_in_repo": "1.txt"}
    api.upload_file(repo_id="lab/model", parent_commit=pushed[:8], **add)
    with pytest.raises(HfHubHTTPError) as error:
        add["path_or_fileobj"] = b"2"
        api.upload_file(repo_id="lab/model", parent_commit=pushed, **add)
    assert status(error) == 412


def test_an_lfs_file_needs_its_content(hub, api, pushed, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub._commit_api._upload_files", lambda **_: None
    )
    with pytest.raises(HfHubHTTPError, match="never uploaded") as error:
        api.upload_file(
            repo_id="lab/model",
            path_or_fileobj=b"other",
            path_in_repo=WEIGHTS,
        )
    assert status(error) == 400
    assert hub.repo("lab/model").head() == pushed


def test_an_upload_is_checked_by_its_sha256(hub):
    put = urllib.request.Request(
        f"{hub.url}/presigned/{'0' * 64}", data=b"x", method="PUT"
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(put)
    assert error.value.code == 400
    assert "0" * 64 not in hub.blobs


@pytest.mark.parametrize("path", ["../x", "a/../x", ".git/config"])
def test_a_path_that_leaves_the_repo_is_refused(hub, api, pushed, path):
    operation = CommitOperationAdd("x.txt", b"x")
    operation.path_in_repo = path
    with pytest.raises((HfHubHTTPError, ValueError)):
        api.create_commit("lab/model", [operation], commit_message="x")
    assert hub.repo("lab/model").head() == pushed


def test_a_pull_request_leaves_main_alone(hub, api, pushed):
    guest = HfApi(token="hf_bob")
    made = guest.upload_file(
        repo_id="lab/model",
        path_or_fileobj=b"{1}",
        path_in_repo="config.json",
        create_pr=True,
    )
    assert made.pr_num == 1
    assert made.pr_revision == "refs/pr/1"
    assert hub.repo("lab/model").head() == pushed
    path = hf_hub_download("lab/model", "config.json", revision="refs/pr/1")
    assert pathlib.Path(path).read_text() == "{1}"
    refs = api.list_repo_refs("lab/model", include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]


# ---- repos and users


def test_a_repo_is_created_once(hub, api):
    url = api.create_repo("lab/model", private=True)
    assert url == f"{hub.url}/lab/model"
    assert url.repo_id == "lab/model"
    assert hub.repo("lab/model").private
    assert api.create_repo("lab/model", exist_ok=True) == url
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("lab/model")
    assert status(error) == 409
    api.delete_repo("lab/model")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("lab/model")


def test_a_repo_without_namespace_is_the_users(hub, api):
    api.create_repo("model")
    assert hub.repo("alice/model")


def test_who_a_token_is(api):
    found = api.whoami()
    assert found["name"] == "alice"
    assert [org["name"] for org in found["orgs"]] == ["lab"]
    assert found["auth"]["accessToken"]["role"] == "write"


def test_an_unknown_token_is_told_so(pushed):
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(token="hf_wrong").model_info("lab/model")
    assert status(error) == 401
    assert not isinstance(error.value, RepositoryNotFoundError)


@pytest.mark.parametrize(
    "token, wanted", [("hf_alice_read", 403), ("hf_bob", 403), (False, 401)]
)
def test_who_may_not_write_does_not(hub, pushed, folder, token, wanted):
    api = HfApi(token=token)
    (folder / "config.json").write_text("[]")
    for action in (
        lambda: api.create_repo("lab/other"),
        lambda: api.upload_folder(repo_id="lab/model", folder_path=folder),
        lambda: api.create_tag("lab/model", tag="v1"),
        lambda: api.update_repo_settings("lab/model", private=True),
        lambda: api.delete_repo("lab/model"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            action()
        assert status(error) == wanted
    assert hub.repo("lab/model").head() == pushed
    assert "refs/tags/v1" not in hub.repo("lab/model").refs
    assert list(hub.repos) == [("model", "lab/model")]


@pytest.mark.parametrize("token, wanted", [("hf_bob", 404), (False, 401)])
def test_a_private_repo_is_as_if_it_were_not(hub, token, wanted):
    hub.put("lab/secret", {"config.json": "{}"}, private=True)
    for repo_id in ("lab/secret", "lab/missing"):
        with pytest.raises(RepositoryNotFoundError) as error:
            hf_hub_download(repo_id, "config.json", token=token)
        assert status(error) == wanted
    assert hf_hub_download("lab/secret", "config.json", token="hf_alice")
    assert not list(HfApi(token=token).list_models(author="lab"))


def test_the_token_of_the_environment_opens_a_private_repo(hub, monkeypatch):
    hub.put("lab/secret", {"config.json": "{}"}, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_alice_read")
    assert hf_hub_download("lab/secret", "config.json")


@pytest.mark.parametrize("token, wanted", [("hf_bob", 403), (False, 401)])
def test_a_gated_repo_opens_to_who_was_let_in(hub, token, wanted):
    hub.put("lab/gated", {"config.json": "{}"})
    HfApi(token="hf_alice").update_repo_settings("lab/gated", gated="manual")
    with pytest.raises(GatedRepoError) as error:
        hf_hub_download("lab/gated", "config.json", token=token)
    assert status(error) == wanted
    hub.repo("lab/gated").granted.add("bob")
    assert hf_hub_download("lab/gated", "config.json", token="hf_bob")


# ---- look and load


def test_what_is_told_of_a_model(api, pushed, folder):
    info = api.model_info("lab/model", files_metadata=True)
    assert info.sha == pushed
    assert info.card_data.license == "apache-2.0"
    assert info.library_name == "speechbrain"
    assert set(info.tags) == {"vq", "speechbrain"}
    files = {file.rfilename: file for file in info.siblings}
    assert files[WEIGHTS].lfs.size == files[WEIGHTS].size == 5_000_000
    assert files["config.json"].lfs is None
    assert [m.id for m in api.list_models(author="lab")] == ["lab/model"]
    tree = {entry.path: entry for entry in api.list_repo_tree("lab/model")}
    assert set(tree) == {
        ".gitattributes",
        "README.md",
        "config.json",
        WEIGHTS,
        "sub",
    }
    assert [e.path for e in api.list_repo_tree("lab/model", "sub")] == [
        "sub/notes.txt"
    ]
    found = api.get_paths_info("lab/model", ["sub", "config.json", "none"])
    assert [entry.path for entry in found] == ["sub", "config.json"]
    assert found[1].blob_id == files["config.json"].blob_id
    commits = api.list_repo_commits("lab/model")
    assert commits[0].commit_id == pushed
    assert commits[0].authors == ["alice"]
    assert len(commits) == 3


def test_revisions_by_tag_branch_and_sha(hub, api, pushed):
    api.create_tag("lab/model", tag="v1", tag_message="first")
    api.create_branch("lab/model", branch="dev", revision="v1")
    new = hub.put("lab/model", {"config.json": "[]"})
    api.upload_file(
        repo_id="lab/model",
        revision="dev",
        path_or_fileobj=b"dev",
        path_in_repo="config.json",
    )
    for revision, text in {
        None: "[]",
        "main": "[]",
        new: "[]",
        "v1": "{}",
        pushed: "{}",
        "dev": "dev",
        "refs/heads/dev": "dev",
    }.items():
        path = hf_hub_download("lab/model", "config.json", revision=revision)
        assert pathlib.Path(path).read_text() == text
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag("lab/model", tag="v1")
    assert status(error) == 409
    api.create_tag("lab/model", tag="v1", exist_ok=True)
    api.delete_tag("lab/model", tag="v1")
    api.delete_branch("lab/model", branch="dev")
    refs = api.list_repo_refs("lab/model")
    assert refs.tags == []
    assert [ref.name for ref in refs.branches] == ["main"]
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("lab/model", tag="v1")


def test_what_is_missing_is_told_apart(pushed):
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("lab/model", "none.txt")
    # The answer says at which commit, and the client remembers.
    assert try_to_load_from_cache("lab/model", "none.txt") is not None
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("lab/model", "config.json", revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("lab/none", "config.json", token="hf_bob")
    # The client takes a 401 for a missing repo only where the Hub says so.
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("lab/none")


def test_the_cache_is_asked_before_the_hub(hub, pushed):
    first = hf_hub_download("lab/model", "config.json")
    hub.log.clear()
    assert hf_hub_download("lab/model", "config.json") == first
    assert [method for method, _ in hub.log] == ["HEAD"]
    hub.log.clear()
    pinned = hf_hub_download("lab/model", "config.json", revision=pushed)
    assert pinned == first
    assert hub.log == []


def test_a_pinned_and_cached_snapshot_makes_no_call(hub, pushed):
    folder = snapshot_download("lab/model", revision=pushed)
    hub.log.clear()
    assert snapshot_download("lab/model", revision=pushed) == folder
    assert hub.log == []


def test_a_snapshot_of_some_files_in_a_folder(pushed, folder, tmp_path):
    snapshot_download(
        "lab/model", local_dir=tmp_path / "x", allow_patterns=["sub/*"]
    )
    assert contents(tmp_path / "x") == {"sub/notes.txt": b"notes"}


def test_a_moved_main_is_followed(hub, pushed):
    old = snapshot_download("lab/model")
    new = hub.put("lab/model", {"config.json": "[]"})
    folder = snapshot_download("lab/model")
    assert folder.endswith(new)
    assert pathlib.Path(folder, "config.json").read_text() == "[]"
    assert pathlib.Path(old, "config.json").read_text() == "{}"


def test_the_hub_as_a_file_system(pushed):
    files = HfFileSystem(token="hf_alice")
    assert files.read_text("lab/model/sub/notes.txt") == "notes"
    with files.open("lab/model/new.txt", "w") as file:
        file.write("new")
    assert files.exists("lab/model/new.txt")


def test_ranges_and_unchanged_files(hub, pushed):
    url = f"{hub.url}/lab/model/resolve/main/sub/notes.txt"

    def get(**headers):
        return get_session().get(url, headers=headers)

    assert get(Range="bytes=1-3").content == b"ote"
    tail = get(Range="bytes=-2")
    assert (tail.status_code, tail.content) == (206, b"es")
    assert tail.headers["Content-Range"] == "bytes 3-4/5"
    assert get(Range="bytes=9-").status_code == 416
    unchanged = get(**{"If-None-Match": get().headers["ETag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


# ---- faults


def test_a_cut_download_is_started_again(hub, pushed, folder):
    hub.cut(path=WEIGHTS, after=100_000)
    path = hf_hub_download("lab/model", WEIGHTS)
    assert pathlib.Path(path).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert len(hub.calls("GET", WEIGHTS)) == 2


def test_a_cut_download_is_resumed(hub, pushed, folder, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.cut(path=WEIGHTS, after=100_000)
    ranges = []
    get_session().event_hooks["request"].append(
        lambda request: ranges.append(request.headers.get("Range"))
    )
    try:
        path = hf_hub_download("lab/model", WEIGHTS)
    finally:
        get_session().event_hooks["request"].pop()
    assert pathlib.Path(path).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert ranges[-1] == "bytes=100000-"


def test_a_download_that_is_cut_each_time_fails(hub, pushed):
    hub.cut(path=WEIGHTS, after=0, times=99)
    with pytest.raises(Exception, match="without sending complete"):
        hf_hub_download("lab/model", WEIGHTS)
    hub.faults.clear()
    assert hf_hub_download("lab/model", WEIGHTS)


def test_a_reset_download_is_not_tried_again(hub, pushed):
    hub.cut(path=WEIGHTS, after=100_000, reset=True)
    with pytest.raises(Exception, match="reset by peer"):
        hf_hub_download("lab/model", WEIGHTS)
    assert len(hub.calls("GET", WEIGHTS)) == 1
    assert hf_hub_download("lab/model", WEIGHTS)


def test_a_cut_upload_is_sent_again(hub, api, folder):
    api.create_repo("lab/model")
    hub.cut_upload(path="/presigned/", after=100_000)
    api.upload_folder(repo_id="lab/model", folder_path=folder)
    assert len(hub.calls("PUT", "/presigned/")) == 2
    assert (
        hub.repo("lab/model").files()[WEIGHTS]
        == (folder / WEIGHTS).read_bytes()
    )


def test_a_cut_commit_is_no_commit(hub, api, pushed, folder):
    hub.cut_upload(path="/commit/", after=10)
    (folder / "config.json").write_text("[]")
    with pytest.raises(Exception, match="reset|disconnected|Broken pipe"):
        api.upload_folder(repo_id="lab/model", folder_path=folder)
    assert hub.repo("lab/model").head() == pushed


@pytest.mark.parametrize("code", [401, 403, 404, 409, 412, 429, 500, 503])
def test_any_status_on_demand(hub, api, code):
    hub.fail(code, "POST", "/api/repos/create", message="as told")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("lab/model")
    assert status(error) == code
    assert error.value.server_message == "as told"
    api.create_repo("lab/model")


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_passing_fault_is_waited_out(hub, api, folder, code):
    api.create_repo("lab/model")
    hub.fail(code, path="/preupload/", headers={"Retry-After": "0"})
    hub.fail(code, path="/presigned/", times=2)
    api.upload_folder(repo_id="lab/model", folder_path=folder)
    assert len(hub.calls("POST", "/preupload/")) == 2
    assert len(hub.calls("PUT", "/presigned/")) == 3


def test_an_error_code_makes_its_exception(hub, pushed):
    hub.fail(403, path="/resolve/", error_code="GatedRepo")
    with pytest.raises(GatedRepoError):
        hf_hub_download("lab/model", "config.json")


def test_a_server_that_is_gone(hub, api, pushed):
    cached = hf_hub_download("lab/model", "config.json")
    hub.stop()
    assert hf_hub_download("lab/model", "config.json") == cached
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("lab/model", WEIGHTS)
    with pytest.raises(Exception, match="refused"):
        api.model_info("lab/model")
    hub.start()
    assert api.model_info("lab/model").sha == pushed


# ---- cards


def test_a_good_card_passes():
    ModelCard("---\nlicense: mit\n---\ntext").validate()


@pytest.mark.parametrize(
    "front, told",
    [
        ("license: my-own", "license"),
        ("- a\n- b", "object"),
        ("a: [", "valid YAML"),
        ("tags: vq", "tags"),
        ("model-index: [{name: x}]", "results"),
    ],
)
def test_a_bad_card_is_refused_before_anything_is_pushed(
    hub, api, pushed, folder, front, told
):
    (folder / "README.md").write_text(f"---\n{front}\n---\ntext")
    with pytest.raises(ValueError, match=told):
        api.upload_folder(repo_id="lab/model", folder_path=folder)
    assert hub.repo("lab/model").head() == pushed


def test_a_bad_card_fails_its_own_check(hub):
    card = ModelCard("---\nlicense: mit\n---\ntext")
    card.data.license = "my-own"
    with pytest.raises(ValueError, match="license"):
        card.validate()


def test_a_card_is_pushed_and_updated(hub, pushed):
    card = ModelCard.load("lab/model")
    card.text = "told"
    card.push_to_hub("lab/model", token="hf_alice")
    huggingface_hub.metadata_update(
        "lab/model", {"metrics": ["new"]}, token="hf_alice"
    )
    text = hub.repo("lab/model").files()["README.md"].decode()
    assert "told" in text and "- new" in text


# ---- other programs


def hf(*arguments, **environ):
    program = pathlib.Path(sys.executable).with_name("hf")
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_line(hub, folder, tmp_path):
    environ = {"HF_TOKEN": "hf_alice"}
    assert "alice" in hf("auth", "whoami", **environ)
    hf("upload", "lab/model", folder, "--private", **environ)
    assert hub.repo("lab/model").private
    hf("download", "lab/model", "--local-dir", tmp_path / "x", **environ)
    got = contents(tmp_path / "x")
    got.pop(".gitattributes")
    assert got == contents(folder)


XET = """
import sys
from huggingface_hub import HfApi, snapshot_download
api = HfApi(token="hf_alice")
api.create_repo("lab/model", exist_ok=True)
api.upload_folder(repo_id="lab/model", folder_path=sys.argv[1])
api.upload_folder(repo_id="lab/model", folder_path=sys.argv[1])
print(snapshot_download("lab/model"))
"""


def with_xet(folder):
    return subprocess.run(
        [sys.executable, "-c", XET, folder],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_DISABLE_XET": "0"},
    )


def test_xet_up_and_down(hub, folder):
    hub.xet = True
    done = with_xet(folder)
    if done.returncode and "local://" in done.stderr:
        pytest.skip("this hf_xet does not take a local store")
    assert done.returncode == 0, done.stderr
    got = contents(done.stdout.strip())
    got.pop(".gitattributes")
    assert got == contents(folder)
    repo = hub.repo("lab/model")
    assert repo.files()[WEIGHTS] == (folder / WEIGHTS).read_bytes()
    assert len(repo.commits()) == 3
    assert hub.calls("GET", "/xet-read-token/")
    assert not hub.calls("PUT", "/presigned/")
    # Who has no Xet gets the same bytes.
    path = hf_hub_download("lab/model", WEIGHTS, force_download=True)
    assert pathlib.Path(path).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_server_without_xet_gets_nothing(hub, folder):
    done = with_xet(folder)
    assert done.returncode
    assert "ConnectionError" in done.stderr
    assert len(hub.repo("lab/model").commits()) == 2


# ---- data sets


def test_a_data_set_of_tokens(hub):
    import datasets

    tokens = [[1, 2, 3], [4], []]
    made = datasets.Dataset.from_dict({"id": list("abc"), "tokens": tokens})
    made.push_to_hub("lab/tokens", private=True, token="hf_alice")
    repo = hub.repo("lab/tokens", "dataset")
    assert repo.private
    sha = repo.head()
    hub.put("lab/tokens", {"other.txt": "moved"}, "dataset")
    got = datasets.load_dataset(
        "lab/tokens", split="train", revision=sha, token="hf_alice"
    )
    assert got["tokens"][:] == tokens
    info = HfApi(token="hf_alice").dataset_info("lab/tokens")
    assert info.sha == repo.head() != sha
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token="hf_alice").model_info("lab/tokens")
