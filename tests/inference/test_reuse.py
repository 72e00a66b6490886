"""A tokenizer in the hands of others: DASB's extractor and embedding layer,
another yaml, plain PyTorch, the file of weights alone.
"""

import subprocess
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_utils import undo_padding

from speechbrain_vq import VQTokenizer, export_pretrained

RATE = 16000


@pytest.fixture
def model(make_run, tmp_path):
    return export_pretrained(make_run()[0], tmp_path / "model")


@pytest.fixture
def tokenizer(model):
    return VQTokenizer.from_hparams(model)


class DiscreteEmbedding(torch.nn.Module):
    """An embedding layer of DASB's kind: one table, a block for each
    codebook."""

    def __init__(self, num_codebooks, vocab_size, vectors):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(vectors, freeze=False)
        self.offsets = torch.arange(0, num_codebooks * vocab_size, vocab_size)

    def forward(self, tokens):
        """[B, N, K] -> [B, N, K, H]."""
        return self.table(tokens + self.offsets)


def extract(tokenizer, signals):
    """What DASB's TokensExtractor does to a data set."""
    dataset = DynamicItemDataset(
        {name: {"sig": signal} for name, signal in signals.items()},
        output_keys=["id", "sig"],
    )
    tokenizer = tokenizer.to(torch.device("cpu"))
    assert tokenizer.sample_rate == RATE
    found = {}
    for batch in make_dataloader(dataset, batch_size=4):
        signal, lengths = batch["sig"]
        tokens = tokenizer.sig_to_tokens(signal, lengths)
        found.update(
            zip(batch["id"], undo_padding(tokens, lengths), strict=True)
        )
    return found


def test_dasb_extractor(tokenizer):
    # Whole tokens: DASB cuts by the lengths of the signals, see below.
    hop = round(RATE / tokenizer.token_rate)
    signals = {
        str(n): torch.randn(n * hop) for n in (7, 50, 31, 64, 1, 40, 23, 2)
    }
    found = extract(tokenizer, signals)
    assert found.keys() == signals.keys()
    for name, signal in signals.items():
        alone = tokenizer.sig_to_tokens(signal.unsqueeze(0))[0]
        assert alone.shape == (int(name), 1)
        assert found[name] == alone.tolist()


def test_dasb_extractor_with_any_lengths(tokenizer):
    """DASB cuts tokens by the lengths of the signals; where these are no
    whole tokens it may keep one too few, or one of the padding, as with any
    tokenizer. The lengths that encode_batch gives are exact."""
    signals = {str(n): torch.randn(2000 + 777 * n) for n in range(16)}
    found = extract(tokenizer, signals)
    for name, signal in signals.items():
        alone = tokenizer.sig_to_tokens(signal.unsqueeze(0))[0].tolist()
        assert abs(len(found[name]) - len(alone)) <= 1
        common = min(len(found[name]), len(alone))
        assert found[name][:common] == alone[:common]
    padded = torch.nn.utils.rnn.pad_sequence(
        list(signals.values()), batch_first=True
    )
    lengths = torch.tensor([len(s) for s in signals.values()])
    tokens, lengths = tokenizer.encode_batch(padded, lengths / padded.shape[1])
    for signal, exact in zip(
        signals.values(), undo_padding(tokens, lengths), strict=True
    ):
        assert exact == tokenizer.encode_batch(signal[None])[0][0].tolist()


def test_dasb_embedding_layer(tokenizer):
    size = tokenizer.codebook_size
    layer = DiscreteEmbedding(1, size, tokenizer.get_pretrained_embeddings())
    tokens = tokenizer.sig_to_tokens(torch.randn(3, RATE))
    vectors = layer(tokens)
    decoded = tokenizer.mods.quantizer.decode(tokens.squeeze(-1))
    assert torch.equal(vectors.sum(2), decoded)
    # It learns without the tokenizer learning.
    before = tokenizer.get_pretrained_embeddings().clone()
    vectors.square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    assert not torch.equal(layer.table.weight, before)
    assert torch.equal(tokenizer.get_pretrained_embeddings(), before)


def test_from_another_yaml_beside_a_pretrainer(model, tmp_path):
    trained = torch.nn.Linear(8, 32)
    (tmp_path / "source").mkdir()
    torch.save(trained.state_dict(), tmp_path / "source/head.ckpt")
    hparams = load_hyperpyyaml(f"""
tokenizer: !apply:speechbrain_vq.inference.VQTokenizer.from_hparams
    source: {model}
codebook_size: !ref <tokenizer.codebook_size>
head: !new:torch.nn.Linear
    in_features: 8
    out_features: !ref <codebook_size>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    collect_in: {tmp_path / "collected"}
    loadables:
        head: !ref <head>
    paths:
        head: {tmp_path / "source/head.ckpt"}
""")
    hparams["pretrainer"].collect_files()
    hparams["pretrainer"].load_collected()
    tokenizer = hparams["tokenizer"]
    assert isinstance(tokenizer, VQTokenizer)
    wavs = torch.randn(2, RATE)
    tokens, _ = tokenizer.encode_batch(wavs)
    alone, _ = VQTokenizer.from_hparams(model).encode_batch(wavs)
    assert torch.equal(tokens, alone)
    vectors = tokenizer.mods.quantizer.decode(tokens)
    assert torch.equal(hparams["head"](vectors), trained(vectors))
    assert not any(p.requires_grad for p in tokenizer.parameters())
    assert not tokenizer.training


def test_the_codebook_in_plain_pytorch(tokenizer):
    quantizer = tokenizer.mods.quantizer
    tokens, _ = tokenizer.encode_batch(torch.randn(2, RATE))
    vectors = torch.nn.functional.embedding(tokens, quantizer.codebook[0])
    assert torch.equal(vectors, quantizer.decode(tokens))


WEIGHTS_ALONE = """
import sys
import torch
from safetensors.torch import load_file

model, latents, output = sys.argv[1:]
weights = load_file(f"{model}/model.safetensors")
norm = {
    name: weights[f"quantizer.norm.{name}"]
    for name in ("running_mean", "running_var", "weight", "bias")
}
x = torch.load(latents).flatten(0, 1)
x = torch.nn.functional.batch_norm(x, **norm, eps=1e-12)
codebook = weights["quantizer.embedding.weight"][0]
tokens = torch.cdist(
    x, codebook, compute_mode="donot_use_mm_for_euclid_dist"
).argmin(1)
torch.save(tokens, output)
assert not {"speechbrain", "speechbrain_vq"} & set(sys.modules)
"""


def test_the_weights_without_the_package(model, tokenizer, tmp_path):
    latents = torch.randn(4, 50, 8)
    torch.save(latents, tmp_path / "latents.pt")
    subprocess.run(
        [sys.executable, "-c", WEIGHTS_ALONE, model]
        + [tmp_path / "latents.pt", tmp_path / "tokens.pt"],
        check=True,
    )
    tokens = torch.load(tmp_path / "tokens.pt").view(4, 50)
    assert torch.equal(tokens, tokenizer.mods.quantizer.encode(latents))
    assert len(tokens.unique()) > 5
