"""Recipe for discovering speech units with a vector-quantized autoencoder.

To run this recipe:
> python train.py hparams/train.yaml --data_folder data/minispeech

Where the folder does not exist, MiniSpeech is made there. To compare with
another way of training the codebook, add for example --arm=vanilla.

Authors
 * speechbrain_vq authors 2026
"""

import sys

from speechbrain_vq.recipes.common.unit_discovery import run
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import prepare

if __name__ == "__main__":
    run(prepare, sys.argv[1:])
