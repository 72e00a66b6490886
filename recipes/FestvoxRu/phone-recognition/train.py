"""Recipe for recognising Russian phones through a vector quantizer.

To run this recipe:
> apt-get download festvox-ru
> python train.py hparams/small.yaml --data_folder=.

To compare with another way of training the codebook, add for example
--arm=vanilla; --arm=none has no bottleneck.

Authors
 * speechbrain_vq authors 2026
"""

import sys

from speechbrain_vq.recipes.common.phone_recognition import run
from speechbrain_vq.recipes.FestvoxRu.festvoxru_prepare import prepare

if __name__ == "__main__":
    run(prepare, sys.argv[1:])
