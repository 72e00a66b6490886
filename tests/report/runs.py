"""Folders of runs, as the recipes leave them, without a training."""

import json
import pathlib
import shutil

from tests.commands import MINI

HPARAMS = """\
# Generated 2026-01-01 from:
# recipes/MiniSpeech/unit-discovery/hparams/train.yaml
seed: 7
preset: {preset}
vq:
    norm: none
    codebook: gradient
    num_codebooks: 1
data_folder: data
number_of_steps: 400
codebook_size: 512
inference:
    interface: VQTokenizer
    recipe: MiniSpeech/unit-discovery
"""


def make_run(
    folder: pathlib.Path,
    used: float = 94.0,
    perplexity: float = 391.0,
    preset: str = "robust",
    phones: bool = True,
    words: str = "a sentence",
) -> pathlib.Path:
    """Make a run whose model is the bundled one, and whose test set is two
    utterances with invented phones."""
    run = folder / "run"
    (run / "manifests").mkdir(parents=True)
    shutil.copytree(MINI, run / "model")
    (run / "hyperparams.yaml").write_text(HPARAMS.format(preset=preset))
    lines = []
    for step in range(20, 401, 20):
        line = f"epoch: {step // 20}, step: {step} - train loss: {5 / step}"
        if step > 100:
            line += f", train used_codes_percent: {used}"
            line += f", train perplexity: {perplexity}"
        lines.append(f"{line} - valid loss: {6 / step}")
    (run / "train_log.txt").write_text("\n".join(lines) + "\n")
    (run / "log.txt").write_text(
        "Step 100: re-initialized quantizer from 9 vectors\n"
        "Step 200: re-initialized quantizer from 9 vectors\n"
    )
    results = {
        "used_codes_percent": used,
        "perplexity": perplexity,
        "reconstruction_error": 0.25,
        "steps": 400,
        "vectors": 60_000,
    }
    (run / "results.json").write_text(json.dumps(results))
    names = ["s", "i:", "tS", "aI", "n", "t", "l", "SIL"]
    spans = [[i / 8, (i + 1) / 8, name] for i, name in enumerate(names)]
    entries = {
        name: {
            "wav": f"{MINI}/example.wav",
            "length": 2.0,
            "spk_id": name,
            "words": words,
            "phones": spans if phones else [],
        }
        for name in ("ann", "bob")
    }
    (run / "manifests" / "test.json").write_text(json.dumps(entries))
    return run
