"""Recipe for learning units from a self-supervised encoder on LibriSpeech: a
vector quantizer for its features, and a decoder that reconstructs them.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=LibriSpeech
> python train.py hparams/train.yaml --data_folder=openslr/librispeech_asr \
--hours=5 --valid_hours=0.5

To train the codebook differently, add --preset=ema_bn, for example.
"""

import sys
from importlib import import_module

from speechbrain.utils.distributed import run_on_main

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.hub.download import download_encoder
from speechbrain_vq.recipes.LibriSpeech.librispeech_prepare import prepare
from speechbrain_vq.recipes.LibriSpeech.librispeech_stream import open_stream

# UnitBrain and its data pipeline
units = import_module("speechbrain_vq.recipes.MiniSpeech.unit-discovery.train")


def run(argv: list[str]) -> units.UnitBrain:
    """Run the recipe from its command line, and return the Brain."""
    hparams, run_opts = units.start(argv)
    features, folder = hparams["features"], hparams["ssl_folder"]
    if folder is None:
        named = [features.source, features.revision]
        # The main process downloads, then all processes read the cache.
        run_on_main(download_encoder, args=named)
        folder = download_encoder(*named)
    features.load_encoder(folder)
    stream = open_stream(hparams) if hparams["stream"] else None
    folder = units.prepared(prepare, hparams)
    return units.train(hparams, run_opts, folder, stream=stream)


if __name__ == "__main__":
    with clean_errors():
        run(sys.argv[1:])
