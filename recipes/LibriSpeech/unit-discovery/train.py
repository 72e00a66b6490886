"""Recipe for discovering speech units in LibriSpeech with a vector-quantized
autoencoder.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=LibriSpeech
> python train.py hparams/train.yaml --data_folder=openslr/librispeech_asr \
--hours=5 --valid_hours=0.5

--stream=True trains on a stream of all parts, with only the first --hours on
disk. To train the codebook differently, add --preset=vanilla, for example.
"""

import sys
from importlib import import_module

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.recipes.LibriSpeech.librispeech_prepare import prepare
from speechbrain_vq.recipes.LibriSpeech.librispeech_stream import open_stream

# UnitBrain and its data pipeline
units = import_module("speechbrain_vq.recipes.MiniSpeech.unit-discovery.train")

if __name__ == "__main__":
    with clean_errors():
        units.run(prepare, sys.argv[1:], open_stream=open_stream)
