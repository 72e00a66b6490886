"""Recipe for training a speech codec, an autoencoder with a residual vector
quantizer, on the recorded speech in Debian packages.

To run this recipe (README.md lists the packages):
> python train.py hparams/train.yaml --data_folder=PACKAGES
"""

import sys
from importlib import import_module

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.recipes.DebianSpeech.debianspeech_prepare import prepare

# UnitBrain and its data pipeline
units = import_module("speechbrain_vq.recipes.MiniSpeech.unit-discovery.train")

if __name__ == "__main__":
    with clean_errors():
        units.run(prepare, sys.argv[1:])
