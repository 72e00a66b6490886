"""Recipe for voice conversion with a vector-quantized autoencoder.

To run this recipe:
> python train.py hparams/train.yaml --data_folder VCTK-Corpus-0.92

hparams/table.yaml has an embedding for each speaker, hparams/ecapa.yaml those
of a pretrained speaker encoder. A folder of manifests, such as that of
MiniSpeech, is taken as well.

Authors
 * speechbrain_vq authors 2026
"""

import sys

from speechbrain_vq.recipes.common.unit_discovery import run
from speechbrain_vq.recipes.common.voice_conversion import ConversionBrain
from speechbrain_vq.recipes.VCTK.vctk_prepare import prepare

if __name__ == "__main__":
    run(prepare, sys.argv[1:], ConversionBrain)
