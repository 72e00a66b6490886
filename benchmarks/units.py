"""Evaluate units, row by row: train each variant with each seed by the
recipe MiniSpeech/unit-discovery, evaluates each model as `speechbrain-vq
evaluate` does, and writes medians with their ranges.

To run it:
> python benchmarks/units.py benchmarks/units/minispeech.yaml \
>     --data_folder=data/minispeech

A run that ended is never run again, nor an evaluation: the same command takes
up what is left. What follows the name of the yaml file is handed to every run.
The yaml file is that of paper_matrix.py, and says besides

* ``settings``: overrides for every run;
* ``evaluated``: from the title of a table to the values of the recipe's
  ``corpus`` that are others there (a language that was not trained on, say),
  of which the test set is evaluated;
* ``reconstructed``: utterances to reconstruct;
* ``columns``: figures of ``evaluate``, or of the run's results.json.

The variant ``kmeans`` is k-means of the features, as many frames at a time as a
token has, with as many clusters as there are codes.
"""

import json
import pathlib
from functools import cached_property

import click
import torch
from hyperpyyaml import load_hyperpyyaml
from paper_matrix import Matrix, save_csv
from report import save
from tqdm import tqdm

from speechbrain_vq import VectorQuantizer, VQTokenizer
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.replacing import replacing
from speechbrain_vq.evaluation import evaluate, write_report
from speechbrain_vq.evaluation.manifest import read_manifest
from speechbrain_vq.hub import export_pretrained
from speechbrain_vq.lobes.autoencoder import utterance_moments
from speechbrain_vq.nnet.kmeans import kmeans
from speechbrain_vq.presets import parse_arguments
from speechbrain_vq.recipes.common.runs import fit_features, write_results
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import prepare

# Vectors to cluster, at most.
SAMPLE = 50_000


class Stacked(torch.nn.Module):
    """Some frames at a time, for an encoder."""

    def __init__(self, stride, utterance_norm):
        super().__init__()
        self.stride, self.utterance_norm = stride, utterance_norm

    def forward(self, features, lengths):
        """[B, T, C] to [B, ceil(T / stride), stride C]."""
        if self.utterance_norm:
            mean, std = utterance_moments(features, lengths)
            features = (features - mean.unsqueeze(1)) / std.unsqueeze(1)
        frames = torch.round(lengths * features.shape[1])
        # The last frame again, to whole strides.
        extra = -features.shape[1] % self.stride
        features = torch.cat(
            [features, features[:, -1:].expand(-1, extra, -1)], dim=1
        )
        stacked = features.unflatten(1, (-1, self.stride)).flatten(2)
        return stacked, torch.ceil(frames / self.stride) / stacked.shape[1]


class Unstacked(torch.nn.Module):
    """The frames again, for a decoder, with the moments of the voice."""

    def __init__(self, stride, utterance_norm):
        super().__init__()
        self.stride, self.utterance_norm = stride, utterance_norm

    def forward(self, latents, speaker, lengths=None):
        """[B, T, stride C] to [B, stride T, C]."""
        features = latents.unflatten(2, (self.stride, -1)).flatten(1, 2)
        if self.utterance_norm:
            mean, std = speaker.unsqueeze(1).chunk(2, dim=2)
            features = features * std + mean
        return features


class Moments(torch.nn.Module):
    """Mean and deviation of an utterance, for a speaker embedding."""

    def __init__(self, channels):
        super().__init__()
        self.output_dim = 2 * channels

    def forward(self, features, lengths):
        """[B, T, C] to [B, 2 C]."""
        return torch.cat(utterance_moments(features, lengths), dim=1)


def clustered(hparams, manifest, seed):
    """K-means of a recipe's features as a tokenizer."""
    features, items = hparams["features"], read_manifest(manifest)
    fit_features(features, items, hparams["longest"])
    encoder = Stacked(hparams["stride"], hparams["utterance_norm"])
    one, vectors = torch.ones(1), []
    for item in items.values():
        wav = read_audio(item["wav"], hparams["sample_rate"])
        vectors.append(encoder(*features(wav.unsqueeze(0), one))[0][0])
    vectors, draw = torch.cat(vectors), torch.Generator().manual_seed(seed)
    vectors = vectors[torch.randperm(len(vectors), generator=draw)[:SAMPLE]]
    found = kmeans(vectors, hparams["codebook_size"], generator=draw)
    quantizer = VectorQuantizer(
        vectors.shape[1], hparams["codebook_size"], norm=None
    )
    with torch.no_grad():
        quantizer.codebook.copy_(found.centroids.unsqueeze(0))
    modules = {
        "features": features,
        "encoder": encoder,
        "quantizer": quantizer,
        "speaker": Moments(hparams["n_mels"]),
        "decoder": Unstacked(hparams["stride"], hparams["utterance_norm"]),
    }
    numbers = {key: hparams[key] for key in ("sample_rate", "token_rate")}
    tokenizer = VQTokenizer(modules, numbers, {"device": "cpu"})
    tokenizer.source = "k-means"
    return tokenizer


class Units(Matrix):
    """The runs of tables of units, and their evaluations."""

    label = "units"

    def __init__(self, path, folder, overrides):
        super().__init__(path, folder, overrides)
        settings = dict(self.task.get("settings", {}))
        # Prepared once for all.
        settings["manifest_folder"] = self.folder / "manifests"
        for own in self.variants.values():
            said = {one.partition("=")[0] for one in [*own, *overrides]}
            own += [
                f"--{key}={value}"
                for key, value in settings.items()
                if f"--{key}" not in said
            ]

    def run(self, variant, seed):
        """Trains and evaluates, unless that was done before."""
        trained = "--preset=kmeans" not in self.variants[variant]
        if trained and not super().run(variant, seed):
            return False
        for title in self.titles:
            self.evaluate(variant, seed, title)
        return True

    def evaluation(self, variant, seed, title):
        """Where an evaluation goes."""
        number = self.titles.index(title)
        return self.output(variant, seed) / f"evaluation-{number}"

    def evaluate(self, variant, seed, title):
        """Evaluates a run on a test set."""
        folder = self.evaluation(variant, seed, title)
        if (folder / "results.json").is_file():
            return
        manifests = self.manifests(title)
        found = evaluate(
            self.model(variant, seed),
            manifests / "test.json",
            max_reconstructed=self.task["reconstructed"],
            # The spread is that of the seeds.
            replicates=0,
        )
        used = found.tables["code_counts"] > 0
        share = float(used.float().mean())
        with replacing(
            self.output(variant, seed) / f"{folder.name}.json"
        ) as path:
            path.write_text(json.dumps({"used_codes": share}))
        write_report(found, folder)

    def model(self, variant, seed):
        """What a run made: a folder, or k-means."""
        output = self.output(variant, seed)
        if "--preset=kmeans" in self.variants[variant]:
            manifest = self.manifests() / "train.json"
            tokenizer = clustered(self.hparams(variant, seed), manifest, seed)
            output.mkdir(parents=True, exist_ok=True)
            write_results(output, {"steps": 0})
            return tokenizer
        if not (output / "model").is_dir():
            # Most codes are dead; that is what the table is to say.
            export_pretrained(output, output / "model", force=True)
        return output / "model"

    def hparams(self, variant, seed):
        """What the recipe's yaml says for a run."""
        _, file, *arguments = self.command(variant, seed)[1:]
        arguments = [one for one in arguments if one != "--preset=kmeans"]
        hparams_file, _, overrides = parse_arguments([file, *arguments])
        with open(hparams_file, encoding="utf-8") as fin:
            return load_hyperpyyaml(fin, overrides, overrides_must_match=False)

    @cached_property
    def corpus(self):
        """How the recipe prepares its data."""
        return self.hparams(*self.runs[0])["corpus"]

    def manifests(self, title=None):
        """The manifests of the training, or those of a table."""
        corpus = dict(self.corpus)
        if others := self.task["evaluated"].get(title):
            number = self.titles.index(title)
            corpus["save_folder"] = self.folder / f"manifests-{number}"
            corpus |= others
        pathlib.Path(corpus["save_folder"]).mkdir(parents=True, exist_ok=True)
        return prepare(**corpus)

    def figures(self, variant, seed, title):
        """All that is known of a run, None where it has not been evaluated."""
        folder = self.evaluation(variant, seed, title)
        path = folder / "results.json"
        if not path.is_file():
            return None
        known = {} if title != self.titles[0] else self.result(variant, seed)
        known |= json.loads(folder.with_suffix(".json").read_text())
        said = json.loads(path.read_text(encoding="utf-8"))
        for section in said["figures"].values():
            known |= {name: one["value"] for name, one in section.items()}
        return known

    @property
    def titles(self):
        """Of the tables."""
        return list(self.task["evaluated"])

    def write(self, stem):
        """Writes the tables as Markdown, and each run as CSV."""
        lines = self.heading()
        for title in self.titles:
            lines += ["", f"## {title}", "", *self.table(title)]
        save_csv(stem.with_suffix(".csv"), self.entries())
        return save(stem.with_suffix(".md"), lines)

    def entries(self):
        """The rows of the CSV: a figure each."""
        yield ["table", "variant", "seed", "figure", "value"]
        for title in self.titles:
            for variant, seed in self.runs:
                known = self.figures(variant, seed, title) or {}
                for name, value in sorted(known.items()):
                    if not isinstance(value, str):
                        yield [title, variant, seed, name, value]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument(
    "task", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--results",
    default="results/units",
    show_default=True,
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="Where the runs go.",
)
def main(task, overrides, results):
    """Runs what is left of the tables and writes them beside their yaml."""
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
