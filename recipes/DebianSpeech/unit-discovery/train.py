"""Recipe for discovering speech units with a vector-quantized autoencoder with
one codebook, trained on the recorded speech in Debian packages.

To run this recipe (../speech-codec/README.md lists the packages):
> python train.py hparams/train.yaml --data_folder=PACKAGES
"""

import sys
from importlib import import_module

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.recipes.DebianSpeech.debianspeech_prepare import prepare

codec = import_module("speechbrain_vq.recipes.DebianSpeech.speech-codec.train")

if __name__ == "__main__":
    with clean_errors():
        codec.units.run(prepare, sys.argv[1:], codec.CodecBrain)
