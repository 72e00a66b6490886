"""A tokenizer in the hands of others: DASB's extractor, and its weights alone."""

import subprocess
import sys

import torch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_utils import undo_padding

RATE = 16000


def extract(tokenizer, signals):
    """What DASB's TokensExtractor does to a data set."""
    data = {name: {"sig": signal} for name, signal in signals.items()}
    dataset = DynamicItemDataset(data, output_keys=["id", "sig"])
    tokenizer = tokenizer.to(torch.device("cpu"))
    assert tokenizer.sample_rate == RATE
    tokens_of = {}
    for batch in make_dataloader(dataset, batch_size=4):
        signal, lengths = batch["sig"]
        rows = undo_padding(tokenizer.sig_to_tokens(signal, lengths), lengths)
        tokens_of.update(zip(batch["id"], rows, strict=True))
    return tokens_of


def test_dasb_extractor_with_any_lengths(tokenizer):
    """DASB cuts tokens by the lengths of the signals; where these are no
    whole tokens it may keep one too few, or one of the padding, as with any
    tokenizer. The lengths that encode_batch gives are exact."""
    signals = {str(n): torch.randn(2000 + 777 * n) for n in range(16)}
    tokens_of = extract(tokenizer, signals)
    for name, signal in signals.items():
        alone = tokenizer.sig_to_tokens(signal.unsqueeze(0))[0].tolist()
        assert abs(len(tokens_of[name]) - len(alone)) <= 1
        common = min(len(tokens_of[name]), len(alone))
        assert tokens_of[name][:common] == alone[:common]
    # What is beyond the lengths is not heard.
    padded = torch.nn.utils.rnn.pad_sequence(
        list(signals.values()), batch_first=True, padding_value=torch.nan
    )
    lengths = torch.tensor([len(s) for s in signals.values()])
    tokens, lengths = tokenizer.encode_batch(padded, lengths / padded.shape[1])
    rows = undo_padding(tokens, lengths)
    for signal, exact in zip(signals.values(), rows, strict=True):
        assert exact == tokenizer.encode_batch(signal[None])[0][0].tolist()
    frames = (lengths * tokens.shape[1]).round().long()
    assert not any(row[n:].any() for row, n in zip(tokens, frames, strict=True))


WEIGHTS_ALONE = """
import sys
import torch
from safetensors.torch import load_file

model, latents, output = sys.argv[1:]
weights = load_file(f"{model}/model.safetensors")
norm = {
    name: weights[f"quantizer.norm.{name}"]
    for name in ("running_mean", "running_var")
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
