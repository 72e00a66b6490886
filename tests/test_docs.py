"""The code of the README, and code, commands and tables of docs/, are right."""

import ast
import configparser
import inspect
import pathlib
import re
import shlex
import shutil

import click
import datasets
import pytest
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML

from speechbrain_vq import VectorQuantizer, bundled, preset_names, push_to_hub
from speechbrain_vq.cli import main
from speechbrain_vq.presets import preset_path
from speechbrain_vq.recipe_arguments import parse_arguments
from speechbrain_vq.recipe_files import recipe_path
from tests.commands import MINI
from tests.training.test_templates import SHAPES, changed_lines

ROOT = pathlib.Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
# Pages that show commands and code to users.
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *DOCS,
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.md")),
]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
URL = SETUP["metadata"]["url"]


def text(name):
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def blocks(page, language):
    pattern = rf"```{language}\n(.*?)```"
    return re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.S)


# Code -----------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch, hub):
    """The recordings and models that the pages name, also on a Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    example = pathlib.Path(bundled("speech"), "example.wav")
    pathlib.Path("recordings").mkdir()
    for name in ("speech.wav", "target.wav", "recordings/one.wav"):
        shutil.copyfile(example, name)
    for name in ("units", "mine"):
        shutil.copytree(MINI, f"results/{name}/model")
    recording = pathlib.Path("speech.wav").read_bytes()
    rows = [{"id": "one", "audio": {"bytes": recording, "path": None}}] * 16
    pathlib.Path("corpus").mkdir()
    datasets.Dataset.from_list(rows).to_parquet("corpus/part.parquet")
    converter = ROOT / "tests/hub/exported/speaker_encoder"
    shutil.copytree(converter, "results/voices/model")
    push_to_hub("results/units/model", "lab/units", tag="v1")


@pytest.mark.parametrize(
    "page",
    [p for p in (ROOT / "README.md", *DOCS) if blocks(p, "python")],
    ids=lambda p: p.stem,
)
def test_code_runs(page, place):
    for block in blocks(page, "python"):
        # As a script of its own: it needs no other block.
        exec(compile(block, str(page), "exec"), {"__name__": "__main__"})


# What the yaml of a reader has beside a block.
BESIDE = """
save_folder: save
tokenizer: units
encoder: !new:torch.nn.Linear [64, 64]
quantizer: !apply:speechbrain_vq.VectorQuantizer.from_preset [robust, 64, 32]
"""


@pytest.mark.parametrize(
    "page, block",
    [(page, block) for page in PAGES for block in blocks(page, "yaml")],
    ids=lambda value: getattr(value, "stem", ""),
)
def test_yaml_builds_what_it_names(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = set(re.findall(r"^(\w+):", block, flags=re.M))
    beside = [x for x in BESIDE.splitlines() if x.split(":")[0] not in own]
    hparams = load_hyperpyyaml("\n".join([*beside, block]))
    assert all(hparams[name] is not None for name in own)


# Commands -------------------------------------------------------------------


def commands():
    """All commands of all pages, without their continuation lines."""
    for page in PAGES:
        for block in blocks(page, "(?:bash|shell|sh)"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield page, words


@pytest.mark.parametrize(
    "page, words",
    [pair for pair in commands() if pair[1][0] == "speechbrain-vq"],
    ids=lambda x: " ".join(x) if isinstance(x, list) else x.name,
)
def test_commands_exist_and_take_their_options(page, words):
    verb, *arguments = words[1:]
    command = main.commands[verb]
    own = {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    options = [a for a in arguments if a.startswith("--")]
    others = [a for a in options if a.split("=")[0] not in {*own, "--help"}]
    if not others:
        return
    assert command.context_settings.get("ignore_unknown_options"), others
    # Of the yaml of a recipe.
    recipe, usual = arguments[0], "MiniSpeech/unit-discovery"
    recipe = recipe if "/" in recipe else usual
    given = dict(a[2:].split("=", 1) for a in options if "=" in a)
    hparams = given.get("hparams", "train.yaml")
    path = recipe_path(f"{recipe}/hparams/{hparams}")
    if "data_folder" not in given:
        others.append("--data_folder=x")
    parse_arguments([str(path), *others])


def test_extras_that_are_named_exist():
    extras = set(SETUP["options.extras_require"])
    for page in PAGES:
        pattern = r"(?:speechbrain-vq|\.|/src)\[([\w,]+)\]"
        for names in re.findall(pattern, page.read_text("utf-8")):
            assert set(names.split(",")) <= extras, page


def test_the_pages_name_all_extras_and_verbs():
    for extra in SETUP["options.extras_require"]:
        assert f"| `{extra}` |" in text("install"), extra
    for verb in main.commands:
        assert f"## {verb}\n" in text("command_line"), verb


# Links ----------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page):
    page_text = page.read_text(encoding="utf-8")
    page_text = re.sub(r"```.*?```", "", page_text, flags=re.S)
    generated = {"contributing.md", "changelog.md"} if page in DOCS else {}
    for link in re.findall(r"\]\((?!http|#|mailto:)([^)#\s]+)", page_text):
        assert link in generated or (page.parent / link).exists(), link
    raw = URL.replace("github.com", "raw.githubusercontent.com")
    pattern = rf"(?:{URL}/(blob|tree|raw)|{raw})/main/([^)#\s]+)"
    for kind, path in re.findall(pattern, page_text):
        target = ROOT / path
        assert target.is_dir() if kind == "tree" else target.is_file(), path


def test_the_map_names_files():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.split("| looking for | file |")[1].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        place = ROOT
        # A name alone is beside the one before it.
        for name in re.findall(r"`([\w/]+\.py)`", row):
            places = [place, ROOT / "speechbrain_vq", ROOT]
            paths = [p / name for p in places if (p / name).is_file()]
            assert paths, row
            place = paths[0].parent


def test_the_package_index_shows_the_readme_right():
    page_text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", page_text)
    assert links and all(re.match("https://|#", link) for link in links)


def test_there_is_one_address_of_the_repository():
    owner = URL.removeprefix("https://github.com/")
    urls = SETUP["metadata"]["project_urls"]
    assert URL in urls and "\nDocumentation = " in urls
    site = YAML().load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert site["repo_url"] == URL and site["site_url"] in urls
    others = [ROOT / "CITATION.cff", *(ROOT / ".github").rglob("*.yml")]
    for page in [*PAGES, *others]:
        page_text = page.read_text(encoding="utf-8")
        pattern = r"github(?:usercontent)?\.com/(\S+?/speechbrain[-_]vq)\b"
        assert set(re.findall(pattern, page_text)) <= {owner}, page


def test_citation_has_the_version_of_the_package():
    citation = YAML().load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == SETUP["metadata"]["version"]


# Tables ---------------------------------------------------------------------


def test_table_counts_the_lines_that_change():
    pattern = r"\| (?:integration|templates)/(\S+).*?\| (\d) \|"
    rows = re.findall(pattern, text("training"))
    assert len(rows) == len(SHAPES)
    for cls in SHAPES:
        name = re.search(r"/(\w+)", cls.__doc__)[1]
        assert (name, str(changed_lines(cls))) in rows


def test_the_table_of_presets_is_what_they_hold():
    rows = {
        row[0].strip(" `"): [cell.strip() for cell in row[1:]]
        for line in text("presets").splitlines()
        if len(row := line.strip("|").split("|")) == 7 and "`" in row[0]
    }
    assert set(rows) == set(preset_names())
    estimators = {"diveq": "DiVeQ", "straight_through": "straight-through"}
    for name, (norm, gradient, learns, rate, when, books) in rows.items():
        preset = YAML().load(preset_path(name))
        assert norm.split(",")[0] == (preset["norm"] or "none")
        assert ("affine" in norm) == preset["affine"]
        if name == "none":
            continue
        assert gradient == estimators[preset["estimator"]]
        is_ema = preset["codebook"] == "ema"
        said = {
            "ema": "moving averages", "fsq": "nothing: a lattice",
            "lfq": "nothing: the signs", "simvq": "a linear map",
        }.get(preset["codebook"])  # fmt: skip
        assert learns.startswith(said or ("codebook loss", "the loss of"))
        multiplier = f"× {preset['codebook_lr_multiplier']:g}"
        assert rate.startswith("none" if is_ema else multiplier)
        assert ("0.01" in rate) == (preset["codebook_max_lr"] is not None)
        assert when.startswith("never") == (preset["reservoir_size"] == 0)
        assert books[0] == str(preset["num_codebooks"])


def test_the_keys_of_the_configuration_exist():
    keys = YAML().load(recipe_path("common/unit_discovery.yaml"))
    section = text("configuration").split("\n## ")[1]
    named = re.findall(r"^\| (`.*?`) \|", section, flags=re.M)
    named = {name for cell in named for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 10 and named <= set(keys)


def test_the_names_of_vector_quantize_pytorch_exist():
    vqp = pytest.importorskip("vector_quantize_pytorch")
    theirs = {
        *inspect.signature(vqp.VectorQuantize).parameters,
        *inspect.signature(vqp.VectorQuantize.forward).parameters,
        *inspect.signature(vqp.ResidualVQ).parameters,
        *dir(vqp.VectorQuantize),
        "ResidualVQ",
    }
    ours = inspect.signature(VectorQuantizer).parameters
    section = text("from_vector_quantize_pytorch").split("side by side")[1]
    for left, right in re.findall(r"^\| (.*?)\| (.*?) \|", section, flags=re.M):
        assert set(re.findall(r"`(\w+)", left)) <= theirs
        assert set(re.findall(r"`(\w+)=", right)) <= set(ours)


# Warnings -------------------------------------------------------------------


def template(node):
    """The text of a message, with a null for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sdrg]", "\0", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "\0"
            for part in node.values
        )
    return ""


def warnings_of(path):
    """First words of the warnings in a file."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    # Of messages that have a name.
    named = {
        node.targets[0].id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
    }
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in ("warn", "warning", "_warn_once"):
            args = [named.get(getattr(a, "id", ""), a) for a in node.args]
            found = [t for t in map(template, args) if " " in t]
            if found:
                # Without values at the front, which stand in no index.
                message = re.sub(r"\W*\0\W*", "\0", found[0]).strip("\0")
                words = message.replace("\0", " \0 ").split()
                yield " ".join(words[:6]).replace(" \0 ", "\0").strip("\0 ")


@pytest.mark.parametrize(
    "folder, some", [("speechbrain_vq", "keeps no"), ("recipes", "left out")]
)
def test_every_warning_is_explained(folder, some):
    page = " ".join(text("troubleshooting").split())
    paths = sorted((ROOT / folder).rglob("*.py"))
    found = [
        (path.name, words) for path in paths for words in warnings_of(path)
    ]
    assert any(some in words for _, words in found)
    assert not [
        (name, words)
        for name, words in found
        if not re.search(re.escape(words).replace("\0", "[^|]*?"), page)
    ]


def test_every_promise_names_a_test():
    lines = text("reliability").splitlines()
    promises = [line for line in lines if "test_" in line]
    assert len(promises) > 20
    for line in promises:
        path, name = re.findall(r"`(tests/[\w/]+\.py)::(\w+)` \|$", line)[0]
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), line
