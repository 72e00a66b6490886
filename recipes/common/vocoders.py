"""Export the vocoder of a run to a folder that ``VQTokenizer`` loads."""

import pathlib
from collections.abc import Sequence

from ruamel.yaml.comments import CommentedMap
from torch import nn

from speechbrain_vq.dataio.atomic import atomic_folder
from speechbrain_vq.hub.folder import HPARAMS, save_weights
from speechbrain_vq.inference import VQTokenizer
from speechbrain_vq.inference.vocoder_loading import load_vocoder
from speechbrain_vq.publish import Run
from speechbrain_vq.publish.hparams import inference_yaml


def export_vocoder(
    folder: pathlib.Path,
    key: str,
    generator: nn.Module,
    tokenizer: VQTokenizer,
    keys: Sequence[str] = (),
) -> None:
    """Export a vocoder to a folder below its run folder, and check that it loads
    and fits the tokenizer.

    ``key`` is the generator's key in the run's yaml. ``keys`` are further keys
    to keep in the vocoder's yaml; ``tokenizer`` becomes its fingerprint there.
    """
    training = Run.open(folder.parent).hparams
    # A shared yaml node, so SpeechBrain's UnitHIFIGAN also gets the weights.
    training["generator"] = training[key]
    training["modules"] = CommentedMap(generator=training["generator"])
    training["tokenizer"] = tokenizer.fingerprint
    text = inference_yaml(training, [*keys, "generator"])
    with atomic_folder(folder) as partial:
        (partial / HPARAMS).write_text(text, encoding="utf-8")
        save_weights({"generator": generator}, partial)
        load_vocoder(partial).check(tokenizer)
