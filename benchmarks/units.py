"""Train every variant with every seed, using a unit-discovery recipe, evaluate
the models like `speechbrain-vq evaluate`, and tabulate medians and ranges.

To run it:
> python benchmarks/units.py benchmarks/units/minispeech.yaml \
>     --data_folder=data/minispeech --make_minispeech=True

The same command resumes an interrupted table: finished runs and evaluations
are skipped. Arguments after the yaml file are passed to every run. Keys of the
yaml file, besides those of paper_matrix.py:

* ``settings``: overrides for every run;
* ``evaluated``: for each table title, changes to the recipe's ``corpus`` (for
  example another language) whose test set is evaluated;
* ``reconstructed``: number of utterances to reconstruct;
* ``columns``: metrics of ``evaluate``, or of the run's results.json.

The variant ``kmeans`` clusters the stacked frames of each token with k-means,
with as many clusters as the codebook has codes.
"""

import json
import pathlib
from functools import cached_property
from importlib import import_module

import click
import torch
from hyperpyyaml import load_hyperpyyaml
from paper_matrix import (
    PRESET,
    Matrix,
    overrides_argument,
    results_option,
    save_csv,
    task_argument,
)
from report import save
from tqdm import tqdm

from speechbrain_vq import VectorQuantizer, VQTokenizer, export_pretrained
from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import read_manifest
from speechbrain_vq.evaluation import evaluate, write_report
from speechbrain_vq.lobes.autoencoder import utterance_moments
from speechbrain_vq.nnet.kmeans import kmeans
from speechbrain_vq.recipe_arguments import parse_arguments
from speechbrain_vq.recipes.common.runs import fit_features, write_results

MAX_VECTORS = 50_000
KMEANS = f"--{PRESET}=kmeans"


class Stacked(torch.nn.Module):
    """Encoder that stacks the frames of each token."""

    def __init__(self, stride, utterance_norm):
        super().__init__()
        self.stride, self.utterance_norm = stride, utterance_norm

    def forward(self, features, lengths):
        """Map [B, T, C] to [B, ceil(T / stride), stride C]."""
        if self.utterance_norm:
            mean, std = utterance_moments(features, lengths)
            features = (features - mean.unsqueeze(1)) / std.unsqueeze(1)
        frames = torch.round(lengths * features.shape[1])
        # Repeat the last frame up to whole strides.
        extra = -features.shape[1] % self.stride
        features = torch.cat(
            [features, features[:, -1:].expand(-1, extra, -1)], dim=1
        )
        stacked = features.unflatten(1, (-1, self.stride)).flatten(2)
        return stacked, torch.ceil(frames / self.stride) / stacked.shape[1]


class Unstacked(torch.nn.Module):
    """Decoder that unstacks frames and restores the utterance's moments."""

    def __init__(self, stride, utterance_norm):
        super().__init__()
        self.stride, self.utterance_norm = stride, utterance_norm

    def forward(self, latents, speaker, lengths=None):
        """Map [B, T, stride C] to [B, stride T, C]."""
        features = latents.unflatten(2, (self.stride, -1)).flatten(1, 2)
        if self.utterance_norm:
            mean, std = speaker.unsqueeze(1).chunk(2, dim=2)
            features = features * std + mean
        return features


class Moments(torch.nn.Module):
    """Speaker embedding: mean and standard deviation of an utterance."""

    def __init__(self, channels):
        super().__init__()
        self.output_dim = 2 * channels

    def forward(self, features, lengths):
        """Map [B, T, C] to [B, 2 C]."""
        return torch.cat(utterance_moments(features, lengths), dim=1)


def kmeans_tokenizer(hparams, manifest, seed):
    """Build a tokenizer from k-means on a recipe's features."""
    features, items = hparams["features"], read_manifest(manifest)
    fit_features(features, items, hparams["longest"])
    encoder = Stacked(hparams["stride"], hparams["utterance_norm"])
    full, vectors = torch.ones(1), []
    for item in items.values():
        wav = read_audio(item["wav"], hparams["sample_rate"])
        vectors.append(encoder(*features(wav.unsqueeze(0), full))[0][0])
    vectors = torch.cat(vectors)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(vectors), generator=generator)
    vectors = vectors[order[:MAX_VECTORS]]
    clusters = kmeans(vectors, hparams["codebook_size"], generator=generator)
    quantizer = VectorQuantizer(
        vectors.shape[1], hparams["codebook_size"], norm=None
    )
    with torch.no_grad():
        quantizer.codebook.copy_(clusters.centroids.unsqueeze(0))
    modules = {
        "features": features,
        "encoder": encoder,
        "quantizer": quantizer,
        "speaker": Moments(hparams["n_mels"]),
        "decoder": Unstacked(hparams["stride"], hparams["utterance_norm"]),
    }
    rates = {key: hparams[key] for key in ("sample_rate", "token_rate")}
    tokenizer = VQTokenizer(modules, rates, {"device": "cpu"})
    tokenizer.source = "k-means"
    return tokenizer


class Units(Matrix):
    """Runs of unit-discovery variants and their evaluations."""

    label = "units"

    def __init__(self, path, folder, overrides):
        super().__init__(path, folder, overrides)
        settings = dict(self.task.get("settings", {}))
        # All runs share one preparation of the data.
        settings["manifest_folder"] = self.folder / "manifests"
        for options in self.variants.values():
            given = {opt.partition("=")[0] for opt in [*options, *overrides]}
            options += [
                f"--{key}={value}"
                for key, value in settings.items()
                if f"--{key}" not in given
            ]

    def run(self, variant, seed):
        """Train and evaluate a variant, unless both are finished."""
        trained = KMEANS not in self.variants[variant]
        if trained and not super().run(variant, seed):
            return False
        for title in self.titles:
            self.evaluate(variant, seed, title)
        return True

    def evaluation(self, variant, seed, title):
        """Return the folder of an evaluation."""
        number = self.titles.index(title)
        return self.output(variant, seed) / f"evaluation-{number}"

    def evaluate(self, variant, seed, title):
        """Evaluate a run on a test set."""
        folder = self.evaluation(variant, seed, title)
        if (folder / "results.json").is_file():
            return
        manifests = self.manifests(title)
        evaluation = evaluate(
            self.model(variant, seed),
            manifests / "test.json",
            max_reconstructed=self.task["reconstructed"],
            # No confidence intervals: the table shows ranges over seeds.
            replicates=0,
        )
        used = evaluation.tables["code_counts"] > 0
        share = float(used.float().mean())
        with atomic_write(folder.with_suffix(".json")) as path:
            path.write_text(json.dumps({"used_codes": share}))
        write_report(evaluation, folder)

    def model(self, variant, seed):
        """Return the model of a run: a folder, or a k-means tokenizer."""
        output = self.output(variant, seed)
        if KMEANS in self.variants[variant]:
            manifest = self.manifests() / "train.json"
            hparams = self.hparams(variant, seed)
            tokenizer = kmeans_tokenizer(hparams, manifest, seed)
            output.mkdir(parents=True, exist_ok=True)
            write_results(output, {"steps": 0})
            return tokenizer
        if not (output / "model").is_dir():
            # Export even collapsed codebooks, which the table reports.
            export_pretrained(output, output / "model", force=True)
        return output / "model"

    def hparams(self, variant, seed):
        """Load the recipe's hyperparameters for a run."""
        _, file, *arguments = self.command(variant, seed)[1:]
        arguments = [option for option in arguments if option != KMEANS]
        hparams_file, _, overrides = parse_arguments([file, *arguments])
        with open(hparams_file, encoding="utf-8") as fin:
            return load_hyperpyyaml(fin, overrides, overrides_must_match=False)

    @cached_property
    def corpus(self):
        """Arguments of the recipe's data preparation."""
        return self.hparams(*self.runs[0])["corpus"]

    def manifests(self, title=None):
        """Prepare the manifests of the training data, or those of a table."""
        corpus = dict(self.corpus)
        if changes := self.task["evaluated"].get(title):
            number = self.titles.index(title)
            corpus["save_folder"] = self.folder / f"manifests-{number}"
            corpus |= changes
        pathlib.Path(corpus["save_folder"]).mkdir(parents=True, exist_ok=True)
        name = f"speechbrain_vq.recipes.{self.task['recipe']}.train"
        return import_module(name.replace("/", ".")).prepare(**corpus)

    def metrics(self, variant, seed, title):
        """Collect the metrics of a run; None if it is not evaluated."""
        folder = self.evaluation(variant, seed, title)
        path = folder / "results.json"
        if not path.is_file():
            return None
        # The first table uses the recipe's own test set.
        first = title == self.titles[0]
        metrics = self.result(variant, seed) if first else {}
        metrics |= json.loads(folder.with_suffix(".json").read_text())
        report = json.loads(path.read_text(encoding="utf-8"))
        for section in report["figures"].values():
            metrics |= {name: entry["value"] for name, entry in section.items()}
        return metrics

    @property
    def titles(self):
        """Titles of the tables."""
        return list(self.task["evaluated"])

    def write(self, stem):
        """Write the tables as Markdown, and each run as CSV."""
        lines = self.heading()
        for title in self.titles:
            lines += ["", f"## {title}", "", *self.table(title)]
        save_csv(stem.with_suffix(".csv"), self.entries())
        return save(stem.with_suffix(".md"), lines)

    def entries(self):
        """Generate the rows of the CSV, one per metric."""
        yield ["table", "variant", "seed", "metric", "value"]
        for title in self.titles:
            for variant, seed in self.runs:
                metrics = self.metrics(variant, seed, title) or {}
                for name, value in sorted(metrics.items()):
                    if not isinstance(value, str):
                        yield [title, variant, seed, name, value]


@click.command(context_settings={"ignore_unknown_options": True})
@task_argument
@overrides_argument
@results_option("results/units")
def main(task, overrides, results):
    """Run the remaining runs of a task and write its tables next to the yaml
    file."""
    units, failed = Units(task, results, overrides), []
    for run in tqdm(units.runs, unit="run"):
        if not units.run(*run):
            failed.append(run)
            tqdm.write(f"{units.output(*run)} failed: see its log.txt")
        units.write(task.with_suffix(""))
    click.echo(units.write(task.with_suffix("")))
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed.")


if __name__ == "__main__":
    main()
