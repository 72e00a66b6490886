"""Pretrained models as modules: moved, frozen, in half precision, in a Brain."""

import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_vq import VQTokenizer
from speechbrain_vq.inference import VQPretrained

RATE = 16000


def test_what_is_missing_is_named():
    class Needy(VQPretrained):
        MODULES_NEEDED = ["encoder", "head"]
        HPARAMS_NEEDED = ["sample_rate"]

    encoder = {"encoder": torch.nn.Linear(2, 2)}
    with pytest.raises(ValueError, match="Needy needs .* Missing: head"):
        Needy(encoder, {"sample_rate": 1})
    with pytest.raises(ValueError, match="Missing: sample_rate"):
        Needy({**encoder, "head": torch.nn.Linear(2, 2)}, {})


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", ""])
def test_a_device_that_is_not_there_is_reported(model, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
        VQTokenizer.from_hparams(model, run_opts={"device": device})


class TinyBrain(sb.Brain):
    """Learns to tell tokens apart."""

    def compute_forward(self, batch, stage):
        tokenizer = self.modules.tokenizer
        assert not any(module.training for module in tokenizer.modules())
        tokens, _ = tokenizer.encode_batch(batch)
        return self.modules.head(tokens), tokens

    def compute_objectives(self, predictions, batch, stage):
        scores, tokens = (x.flatten(0, 1) for x in predictions)
        return torch.nn.functional.cross_entropy(scores, tokens)


def test_frozen_in_another_yaml_and_brain(model):
    hparams = load_hyperpyyaml(f"""
tokenizer: !apply:speechbrain_vq.inference.VQTokenizer.from_hparams
    source: {model}
modules:
    tokenizer: !ref <tokenizer>
    head: !new:torch.nn.Embedding
        num_embeddings: !ref <tokenizer.codebook_size>
        embedding_dim: 32
""")
    tokenizer = hparams["tokenizer"]
    before, wavs = tokenizer.fingerprint, torch.randn(2, RATE)
    tokens, _ = tokenizer.encode_batch(wavs)
    brain = TinyBrain(
        hparams["modules"],
        lambda params: torch.optim.Adam(params, lr=0.1),
        run_opts={"device": "cpu"},
    )
    batches = torch.utils.data.DataLoader(wavs, batch_size=1)
    brain.fit(range(2), batches, progressbar=False)
    groups = brain.optimizer.param_groups
    learned = [p for g in groups for p in g["params"] if p.requires_grad]
    assert len(learned) == 1
    assert all(p is not learned[0] for p in tokenizer.parameters())
    assert tokenizer.fingerprint == before
    assert torch.equal(tokenizer.encode_batch(wavs)[0], tokens)


def test_the_device_is_where_the_model_is(tokenizer, build):
    trained = build(freeze_params=False)
    assert all(p.requires_grad for p in trained.parameters())
    assert trained.train().mods.encoder.training
    around = torch.nn.ModuleDict({"tokenizer": tokenizer}).to("meta")
    assert tokenizer.device == "meta"
    assert {p.device.type for p in around.parameters()} == {"meta"}


def test_half_precision_keeps_weights_features_and_quantizer(tokenizer):
    wavs = torch.randn(4, 2 * RATE)
    tokens, lengths = tokenizer.encode_batch(wavs)
    dtypes = {}

    def watch(module, inputs, output):
        dtypes["in"], dtypes["out"] = inputs[0].dtype, output[0].dtype

    tokenizer.mods.encoder.register_forward_hook(watch)
    for change in (tokenizer.bfloat16, tokenizer.half):
        change()
        halved, half_lengths = tokenizer.encode_batch(wavs)
        assert dtypes == {"in": torch.float32, "out": tokenizer.compute_dtype}
        assert torch.equal(lengths, half_lengths)
        assert (halved != tokens).float().mean() < 0.2
        assert tokenizer.decode_batch(halved).dtype is torch.float32
    # Neither a parent that is halved nor a precision around it changes it.
    torch.nn.ModuleDict({"tokenizer": tokenizer}).half()
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.float().encode_batch(wavs)[0], tokens)
