"""Recipe for discovering the units of one Russian voice with a
vector-quantized autoencoder.

To run this recipe:
> apt-get download festvox-ru
> python train.py hparams/train.yaml --data_folder=.

To compare with another way of training the codebook, add for example
--arm=vanilla.

Authors
 * speechbrain_vq authors 2026
"""

import sys

from speechbrain_vq.recipes.common.unit_discovery import run
from speechbrain_vq.recipes.FestvoxRu.festvoxru_prepare import prepare

if __name__ == "__main__":
    run(prepare, sys.argv[1:])
