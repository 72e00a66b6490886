"""A folder to push, and who pushes it."""

import os

import pytest

CARD = "---\nlicense: apache-2.0\ntags: [vq]\nlibrary_name: speechbrain\n---\n"


@pytest.fixture
def api(hub):
    """The client, as a user who owns lab/."""
    import huggingface_hub

    return huggingface_hub.HfApi(token="hf_alice")


@pytest.fixture
def folder(tmp_path):
    """Text, a card, a file in a subfolder and 5 MB of binary."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text(CARD)
    (folder / "sub" / "notes.txt").write_text("notes")
    (folder / "model.safetensors").write_bytes(os.urandom(5_000_000))
    return folder


@pytest.fixture
def pushed(hub, api, folder):
    """The sha of that folder, pushed to lab/model."""
    api.create_repo("lab/model")
    return api.upload_folder(repo_id="lab/model", folder_path=folder).oid
