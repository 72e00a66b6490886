"""Recipe for recognizing Russian phones through a vector quantizer.

To run this recipe:
> apt-get download festvox-ru
> python train.py hparams/small.yaml --data_folder=.

To train the codebook differently, add --preset=vanilla, for example.
--preset=none has no bottleneck.
"""

import sys
from importlib import import_module

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.recipes.FestvoxRu.festvoxru_prepare import prepare

# PhoneBrain and its data pipeline
phones = import_module("speechbrain_vq.recipes.WSJ.phone-recognition.train")

if __name__ == "__main__":
    with clean_errors():
        phones.run(prepare, sys.argv[1:])
