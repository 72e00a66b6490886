"""Recipe for recognizing phones from the tokens of a frozen tokenizer.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=data

The tokenizer is a bundled one, or --tokenizer=MODEL: a folder written by
export_pretrained, or a Hub id. --make_minispeech generates a synthetic corpus
in the data folder. --input=features trains the same recognizer on the
tokenizer's features instead, to show the cost of tokenizing.
"""

import logging
import sys

import speechbrain as sb
import torch
from speechbrain.utils.distributed import run_on_main
from tqdm import tqdm

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.dataset import TrainingReader
from speechbrain_vq.dataio.manifests import SPLITS
from speechbrain_vq.nnet.utils import check_choice
from speechbrain_vq.recipes.common.phones import (
    PhoneErrorsMixin,
    add_labels,
    read_split,
)
from speechbrain_vq.recipes.common.runs import (
    StagesMixin,
    build_brain,
    fit_and_test,
    prepared,
    start,
    write_results,
)
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import prepare
from speechbrain_vq.training.resume import ResumeMixin

logger = logging.getLogger(__name__)


class TokenEmbedding(torch.nn.Module):
    """Trainable embedding of tokens [B, T, C] of C codebooks as [B, T, C * H],
    starting from vectors [C * K, H]."""

    def __init__(self, vectors, num_codebooks):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(vectors, freeze=False)
        first = torch.arange(num_codebooks) * (len(vectors) // num_codebooks)
        self.register_buffer("first", first, persistent=False)

    def forward(self, tokens):
        """Embed tokens: [B, T, C] -> [B, T, C * H]."""
        return self.table(tokens + self.first).flatten(2)


class ASRBrain(PhoneErrorsMixin, StagesMixin, ResumeMixin, sb.Brain):
    """Train a phone recognizer with CTC."""

    least = "PER"

    def compute_forward(self, batch, stage):
        """Compute the log-probabilities of the phones."""
        batch = batch.to(self.device)
        inputs, lengths = batch.inputs
        vectors = self.modules.front(inputs)
        logits = self.modules.recogniser(vectors, lengths)
        return logits.log_softmax(-1), lengths

    def compute_objectives(self, predictions, batch, stage):
        """Compute the CTC loss."""
        return self.ctc_loss(*predictions, batch, stage)


@torch.no_grad()
def encode(tokenizer, wav, kind):
    """Encode a waveform at the token rate: as tokens [T, C], or as features
    [T, D] with the frames of a token concatenated."""
    wavs = wav.unsqueeze(0).to(tokenizer.device)
    if kind == "tokens":
        return tokenizer.sig_to_tokens(wavs)[0].cpu()
    extract = tokenizer.mods.features
    features = extract(wavs, torch.ones(1, device=wavs.device))[0][0].cpu()
    frames = round(extract.frame_rate / tokenizer.token_rate)
    number = len(features) // frames
    return features[: number * frames].reshape(number, -1)


def dataio_prep(hparams, folder):
    """Build the datasets of a folder of manifests."""
    tokenizer = hparams["pretrained"]
    rate = tokenizer.token_rate
    datasets = {s: read_split(hparams, folder, s, rate) for s in SPLITS}
    add_labels(hparams["label_encoder"], datasets, hparams["save_folder"])
    read = TrainingReader(tokenizer.sample_rate)
    # The tokenizer is frozen, so each utterance is encoded only once.
    inputs = {
        name: encode(
            tokenizer, read(item["wav"], item["length"]), hparams["input"]
        )
        for split in SPLITS
        for name, item in tqdm(
            datasets[split].data.items(), f"{split} set", disable=None
        )
    }

    @sb.utils.data_pipeline.takes("id")
    @sb.utils.data_pipeline.provides("inputs")
    def look_up(name):
        return inputs[name]

    for dataset in datasets.values():
        dataset.add_dynamic_item(look_up)
        dataset.set_output_keys(["id", "inputs", "phone_names", "labels"])
    return datasets


def make_front(hparams, sample):
    """Build the layer before the recognizer; return it and its output size."""
    if hparams["input"] == "features":
        return torch.nn.Identity(), sample.shape[1]
    vectors = hparams["pretrained"].get_pretrained_embeddings().cpu()
    if hparams["embedding_init"] == "random":
        vectors = torch.randn_like(vectors)
    front = TokenEmbedding(vectors, sample.shape[1])
    return front, sample.shape[1] * vectors.shape[1]


def make_modules(hparams, sample):
    """Build the modules to train, whose sizes depend on the data."""
    front, size = make_front(hparams, sample)
    recogniser = hparams["recogniser"](input_shape=[None, None, size])
    recogniser.append(
        sb.nnet.linear.Linear,
        n_neurons=len(hparams["label_encoder"]),
        layer_name="output",
    )
    return {"front": front, "recogniser": recogniser}


def finish(brain, hparams):
    """Write the phone errors and, finally, the test results."""
    brain.write_errors(hparams["per_file"])
    settings = {key: hparams[key] for key in ("tokenizer", "input", "seed")}
    write_results(hparams["output_folder"], settings | brain.results)
    logger.info(
        "Test: phone error rate %.1f %% (%s/results.json)",
        *(brain.results["per"], hparams["output_folder"]),
    )


def train(hparams, run_opts=None):
    """Train and test on a corpus, and return the Brain."""
    check_choice("input", hparams["input"], ("tokens", "features"))
    init = hparams["embedding_init"]
    check_choice("embedding_init", init, ("pretrained", "random"))
    folder = prepared(prepare, hparams)
    datasets = dataio_prep(hparams, folder)
    modules = make_modules(hparams, datasets["train"][0]["inputs"])
    hparams["checkpointer"].add_recoverables(modules)
    brain = build_brain(ASRBrain, hparams, run_opts, modules)
    fit_and_test(brain, datasets, min_key="PER")
    run_on_main(finish, args=[brain, hparams])
    return brain


if __name__ == "__main__":
    with clean_errors():
        train(*start(sys.argv[1:]))
