"""Recipe for voice conversion with a vector-quantized autoencoder and a decoder
conditioned on the speaker.

To run this recipe:
> python train.py hparams/train.yaml --data_folder VCTK-Corpus-0.92

hparams/train.yaml trains a speaker encoder, hparams/table.yaml an embedding for
each speaker, and hparams/ecapa.yaml uses a pretrained speaker encoder.
--data_folder may also be a folder of manifests, such as MiniSpeech.
"""

import os
import pathlib
import sys
from importlib import import_module

from huggingface_hub import hf_hub_download
from speechbrain.utils.distributed import run_on_main

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.manifests import folder_contents
from speechbrain_vq.hub.download import as_repo_id
from speechbrain_vq.hub.errors import in_words
from speechbrain_vq.hub.folder import load_weights, read_checkpoint
from speechbrain_vq.lobes.speakers import PretrainedSpeaker, voices
from speechbrain_vq.recipes.VCTK.vctk_prepare import prepare

units = import_module("speechbrain_vq.recipes.MiniSpeech.unit-discovery.train")

# File name of the weights of SpeechBrain's pretrained speaker encoders.
WEIGHTS = "embedding_model.ckpt"


class ConversionBrain(units.UnitBrain):
    """Train an autoencoder of speech conditioned on the speaker."""

    def set_up(self, datasets):
        """Fill a speaker table with the names of the training speakers, or load
        the weights of a pretrained speaker encoder."""
        super().set_up(datasets)
        speaker = self.hparams.speaker
        if hasattr(speaker, "fill"):
            for split, dataset in datasets.items():
                self.name_speakers(split, dataset)
            items = datasets["train"].data.values()
            speaker.fill({item["spk_id"] for item in items})
        elif isinstance(speaker, PretrainedSpeaker):
            source = self.hparams.speaker_encoder
            run_on_main(find_encoder, args=[source])
            load_encoder(speaker, find_encoder(source))

    def name_speakers(self, split, dataset):
        """Add the speakers' names, as strings, to the batches of a split."""
        for name, item in dataset.data.items():
            if item.get("spk_id") in (None, ""):
                raise ValueError(
                    f"The utterance {name!r} of {split} has no spk_id in the "
                    f"manifest in {self.hparams.data_folder}, and a table of "
                    "speakers requires one. Add it, or use hparams/train.yaml, "
                    "which does not."
                )
            item["spk_id"] = str(item["spk_id"])
        dataset.set_output_keys([*self.items, "spk_id"])

    def speaker(self, batch, features, lengths):
        """Compute the speaker embeddings [B, S] for the decoder."""
        names = getattr(batch, "spk_id", None)
        return voices(
            self.modules.speaker, batch.sig, (features, lengths), names
        )


def find_encoder(source: str | os.PathLike) -> pathlib.Path:
    """Find the ``embedding_model.ckpt`` of a pretrained speaker encoder in a
    folder or on the Hub, such as ``speechbrain/spkrec-ecapa-voxceleb``. No
    other file in its repository is read."""
    folder = pathlib.Path(source).expanduser()
    if folder.is_dir():
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
        raise FileNotFoundError(
            f"{folder} is not a SpeechBrain speaker encoder: it has no "
            f"{WEIGHTS}, but {folder_contents(folder)}."
        )
    repo_id = as_repo_id(source)
    with in_words(repo_id):
        path = hf_hub_download(repo_id, WEIGHTS)
    return pathlib.Path(path)


def load_encoder(speaker: PretrainedSpeaker, path: str | os.PathLike) -> None:
    """Load the weights of a pretrained encoder without running any code in the
    file. Raises ValueError unless they are finite tensors that fit."""
    weights = read_checkpoint(pathlib.Path(path), "embedding_model")
    load_weights({"embedding_model": speaker.embedding_model}, weights, path)


if __name__ == "__main__":
    with clean_errors():
        units.run(prepare, sys.argv[1:], ConversionBrain)
