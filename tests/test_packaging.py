"""What is installed, what an import costs, and which names are public."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import speechbrain_vq

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"datasets", "scipy", "sklearn", "speechbrain", "torchaudio"}
PACKAGES = [
    "speechbrain_vq",
    "speechbrain_vq.hub",
    "speechbrain_vq.publish",
    "speechbrain_vq.inference",
    "speechbrain_vq.nnet",
    "speechbrain_vq.training",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names of the files in the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy, so that the build leaves nothing in the checkout and
    # an old build folder there puts nothing in the wheel.
    source = folder / "source"
    source.mkdir()
    for name in ("speechbrain_vq", "hparams", "recipes"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    # What a run in the recipe's folder leaves behind must stay out.
    results = source / "recipes" / "MiniSpeech" / "results" / "1"
    results.mkdir(parents=True)
    (results / "hyperparams.yaml").write_text("seed: 1\n")

    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    pip += ["--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*pip, "-w", str(folder), str(source)], check=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def files_of(folder):
    """Names of those that are no remains of a run or an import."""
    paths = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    left = {"__pycache__", "results"}
    return [name for name in names if not left & {*name.split("/")}]


def test_wheel_holds_the_package_presets_and_recipes(wheel):
    assert wheel.issuperset(files_of("speechbrain_vq"))
    for folder in ("hparams", "recipes"):
        endings = (".py", ".yaml", ".md", ".txt", ".csv")
        names = [n for n in files_of(folder) if n.endswith(endings)]
        assert names and wheel.issuperset(f"speechbrain_vq/{n}" for n in names)


def test_wheel_holds_nothing_else(wheel):
    assert len({name.split("/")[0] for name in wheel}) == 2  # With its metadata
    parts = {part for name in wheel for part in name.split("/")}
    assert not {"tests", "results"} & parts


def test_sdist_holds_what_is_tracked(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("this is not a checkout")
    # Without the link to an environment that a worktree may have.
    tracked = set(listed.stdout.split("\0")) - {"", ".venv"}
    for name in tracked:
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    code = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    options = {"cwd": tmp_path / "source", "capture_output": True}
    subprocess.run([sys.executable, "-c", code], check=True, **options)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [m.name for m in archive.getmembers() if m.isfile()]
    packaged = {name.split("/", 1)[1] for name in names}
    assert tracked <= packaged, sorted(tracked - packaged)
    others = {name.split("/")[0] for name in packaged - tracked}
    assert others <= {"PKG-INFO", "speechbrain_vq.egg-info"}


def test_import_is_light():
    code = (
        "import sys, speechbrain_vq, speechbrain_vq.training\n"
        "assert 'torch' not in sys.modules\n"
        "import speechbrain_vq.nnet\n"
        "print(*sys.modules)"
    )
    run = [sys.executable, "-c", code]
    loaded = subprocess.run(run, check=True, capture_output=True, text=True)
    assert not HEAVY & set(loaded.stdout.split())


def test_the_package_imports_no_recipe():
    for path in (ROOT / "speechbrain_vq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not re.search(r"\brecipes\b", ast.unparse(node)), path


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_resolve(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None and name in dir(module)


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_public_names(package):
    module = importlib.import_module(package)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert imported - {"attach"} == set(module.__all__) - {"__version__"}


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'speechbrain_vq'.*'VQ'"):
        _ = speechbrain_vq.VQ
