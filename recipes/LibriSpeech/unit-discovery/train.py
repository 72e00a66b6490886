"""Recipe for discovering speech units in LibriSpeech with a vector-quantized
autoencoder.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=LibriSpeech
> python train.py hparams/train.yaml --data_folder=openslr/librispeech_asr \
--hours=5 --valid_hours=0.5

To compare with another way of training the codebook, add for example
--arm=vanilla.

Authors
 * speechbrain_vq authors 2026
"""

import sys

from speechbrain_vq.recipes.common.unit_discovery import run
from speechbrain_vq.recipes.LibriSpeech.librispeech_prepare import prepare

if __name__ == "__main__":
    run(prepare, sys.argv[1:])
