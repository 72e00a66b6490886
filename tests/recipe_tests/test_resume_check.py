"""A folder with a run of other values is not gone on with."""

import pytest
from hyperpyyaml import resolve_references

from speechbrain_vq.presets import preset_path
from speechbrain_vq.recipes.common.resume_check import check_resume

YAML = f"""
seed: 1
__set_seed: !apply:speechbrain.utils.seed_everything [!ref <seed>]
vq: !include:{preset_path("robust")}
    reservoir_size: 99
output_folder: !PLACEHOLDER
save_folder: !ref <output_folder>/save
number_of_steps: 100
size: 8
double: !ref <size> * 2
layer: !new:torch.nn.Linear
    in_features: !ref <size>
    out_features: !ref <number_of_steps>
"""


def check(folder, overrides):
    """Asks whether a run with overrides may go on in the folder."""
    text = f"output_folder: {folder}\n{overrides}"
    check_resume(str(folder / "train.yaml"), text)


@pytest.fixture
def begun(tmp_path):
    """A run with a checkpoint."""
    path = tmp_path / "train.yaml"
    path.write_text(YAML)
    with open(path, encoding="utf-8") as file:
        kept = resolve_references(file, f"output_folder: {tmp_path}\n").read()
    (tmp_path / "hyperparams.yaml").write_text(kept)
    (tmp_path / "save" / "CKPT+1").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("overrides", ["", "number_of_steps: 200\n"])
def test_the_same_run_goes_on(begun, overrides):
    check(begun, overrides)


@pytest.mark.parametrize(
    "overrides, told",
    [
        ("size: 9\n", "size was 8, now it is 9; double was 16"),
        ("vq: {reservoir_size: 7}\n", "vq.reservoir_size. was 99"),
        ("vq: {reinit_schedule: {every: 3}}\n", "vq.reinit_schedule. was"),
        ("layer: {out_features: 3}\n", "layer was"),
        ("layer: !new:torch.nn.Identity\n", "layer was"),
    ],
)
def test_another_run_is_refused(begun, overrides, told):
    with pytest.raises(ValueError, match=f"other settings: {told}"):
        check(begun, overrides)


@pytest.mark.parametrize(
    "override", ["layer: {out_features: 3}", "layer: !new:torch.nn.Identity"]
)
def test_the_same_change_of_a_section_goes_on(begun, override):
    with open(begun / "train.yaml", encoding="utf-8") as file:
        text = f"output_folder: {begun}\n{override}\n"
        kept = resolve_references(file, text).read()
    (begun / "hyperparams.yaml").write_text(kept)
    check(begun, f"{override}\n")


def test_where_nothing_was_kept_nothing_is_refused(begun):
    (begun / "save" / "CKPT+1").rmdir()
    check(begun, "size: 9\n")
    (begun / "save" / "CKPT+1").mkdir()
    (begun / "hyperparams.yaml").unlink()
    check(begun, "size: 9\n")
