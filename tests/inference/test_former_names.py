"""Modules that have moved are found by their former names, with a warning."""

import importlib
import sys

import pytest

from speechbrain_vq import hub, publish


@pytest.mark.parametrize(
    "former, name, present",
    [
        ("dataio.check", "check_audio", "dataio.audio"),
        ("inference.bulk", "tokenize_files", "inference.tokens"),
        ("evaluation.manifest", "read_manifest", "dataio.manifests"),
    ],
)
def test_a_former_name_says_where_it_went(former, name, present):
    sys.modules.pop(f"speechbrain_vq.{former}", None)
    with pytest.warns(DeprecationWarning, match=f"moved to .*{present}"):
        module = importlib.import_module(f"speechbrain_vq.{former}")
    other = importlib.import_module(f"speechbrain_vq.{present}")
    assert getattr(module, name) is getattr(other, name)


@pytest.mark.parametrize(
    "name", ["ExportRefused", "export_pretrained", "push_to_hub"]
)
def test_a_name_of_the_hub_says_where_it_went(name):
    with pytest.warns(FutureWarning, match=f"speechbrain_vq.publish.{name}"):
        assert getattr(hub, name) is getattr(publish, name)
