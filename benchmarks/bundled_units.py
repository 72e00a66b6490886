"""Compare the bundled units with k-means of log-mels on unseen voices.

To run it:
> python benchmarks/bundled_units.py --train=data/debianspeech --data=FOLDER

``--train`` is the manifest folder of the recipe DebianSpeech/unit-discovery,
whose training recordings k-means clusters. ``--data`` is a folder with
``utts.tsv`` and ``phones.tsv.gz``, or with manifests with phones.
"""

import json
import pathlib
import tempfile

import click
from hyperpyyaml import load_hyperpyyaml
from report import save, versions_line
from units import kmeans_tokenizer

from speechbrain_vq import VQTokenizer
from speechbrain_vq.dataio.manifests import SPLITS, read_manifest
from speechbrain_vq.evaluation import evaluate
from speechbrain_vq.recipe_arguments import parse_arguments
from speechbrain_vq.recipe_files import recipe_path
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import prepare

METRICS = {
    "pnmi": "PNMI",
    "abx_within_speaker_any_context_codewords": "ABX within speakers",
    "abx_across_speaker_any_context_codewords": "ABX across speakers",
    "abx_within_speaker_any_context_units": "bare codes, within",
    "abx_across_speaker_any_context_units": "across",
}


def load_hparams():
    """Load the recipe's hyperparameters."""
    yaml = recipe_path("DebianSpeech/unit-discovery/hparams/train.yaml")
    file, _, overrides = parse_arguments([str(yaml), "--data_folder=none"])
    with open(file, encoding="utf-8") as fin:
        return load_hyperpyyaml(fin, overrides, overrides_must_match=False)


@click.command()
@click.option(
    "--train", required=True, type=pathlib.Path, help="Training manifests."
)
@click.option(
    "--data", required=True, type=pathlib.Path, help="Speech with phones."
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    default=(
        "Italian, unseen voice and language=it_IT_m_Carlo",
        "Spanish, unseen voice=es_tux",
        "Spanish, that voice and a training voice=es_tux,es_MX_f_Allison",
    ),
    metavar="TITLE=SPEAKERS",
    help="Row of the table, with the names of its speakers.",
)
def main(train, data, groups):
    """Compare the bundled units with k-means of log-mels on unseen voices."""
    models = {
        "`units`": VQTokenizer.from_hparams("units"),
        "k-means of log-mels": kmeans_tokenizer(
            load_hparams(), train / "train.json", seed=1
        ),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        manifests = prepare(data, pathlib.Path(folder, "all"))
        items = {}
        for split in SPLITS:
            items |= read_manifest(manifests / f"{split}.json")
        for group in groups:
            title, _, speakers = group.partition("=")
            group_items = {
                name: {**item, "wav": str(item["wav"])}
                for name, item in items.items()
                if item["spk_id"] in speakers.split(",")
            }
            manifest = pathlib.Path(folder, "group.json")
            manifest.write_text(json.dumps(group_items), encoding="utf-8")
            for name, model in models.items():
                sections = evaluate(
                    model, manifest, max_reconstructed=0, replicates=0
                ).metrics.values()
                metrics = {
                    key: entry.value
                    for section in sections
                    for key, entry in section.items()
                }
                click.echo({"group": title, "model": name, **metrics})
                rows.append((title, name, metrics))
    lines = [
        "# The bundled units on unseen voices",
        "",
        "`python benchmarks/bundled_units.py --train=data/debianspeech "
        "--data=FOLDER`",
        "",
        "Both have 512 units, learned from the same recordings in Debian "
        "packages: `units`, and k-means of utterance-normalized log-mels with "
        "two frames per token. Phones are from forced alignment. ABX is an "
        "error rate with phones in any context (0.5 is chance), for codewords "
        "or, in the last two columns, for bare codes. One training of 2,000 "
        "steps, seed 1234.",
        "",
        "| speech | units | " + " | ".join(METRICS.values()) + " |",
        "|---|---" + "|---" * len(METRICS) + "|",
    ]
    for title, name, metrics in rows:
        cells = [f"{metrics[k]:.3f}" if k in metrics else "" for k in METRICS]
        lines.append(f"| {title} | {name} | " + " | ".join(cells) + " |")
    save(
        pathlib.Path(__file__).with_name("bundled_units.md"),
        [*lines, "", versions_line()],
    )


if __name__ == "__main__":
    main()
