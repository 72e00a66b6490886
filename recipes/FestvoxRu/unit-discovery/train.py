"""Recipe for discovering the units of one Russian voice with a
vector-quantized autoencoder.

To run this recipe:
> apt-get download festvox-ru
> python train.py hparams/train.yaml --data_folder=.

To train the codebook differently, add --preset=vanilla, for example.
"""

import sys
from importlib import import_module

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.recipes.FestvoxRu.festvoxru_prepare import prepare

# UnitBrain and its data pipeline
units = import_module("speechbrain_vq.recipes.MiniSpeech.unit-discovery.train")

if __name__ == "__main__":
    with clean_errors():
        units.run(prepare, sys.argv[1:])
