"""Recipe for recognising English phones through a vector quantizer.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=LibriSpeech --lexicon=FILE

To compare with another way of training the codebook, add for example
--arm=vanilla; --arm=none has no bottleneck.

Authors
 * speechbrain_vq authors 2026
"""

import sys

from speechbrain_vq.recipes.common.phone_recognition import run
from speechbrain_vq.recipes.LibriSpeech.librispeech_prepare import prepare

if __name__ == "__main__":
    run(prepare, sys.argv[1:])
