"""Random self-supervised encoders of 16 channels and two layers, one of each
family, as the Hub has them.

> python -m tests.ssl_encoders FOLDER
"""

import pathlib
import sys

import torch

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER_SIZES = {
    "d_model": 16,
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")},
    "vocab_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
FAMILIES = {
    "WavLM": ("WavLM", SIZES),
    # The larger ones normalize layers, and the waveform.
    "HuBERT": (
        "Hubert",
        {**SIZES, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
    ),
    "Wav2Vec2": ("Wav2Vec2", SIZES),
    "Whisper": ("Whisper", WHISPER_SIZES),
}


def make_encoder(family, folder, seed=0):
    """Writes an encoder of a family to a folder, and gives the folder."""
    import transformers

    name, sizes = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}Model")(config)
        # Freshly drawn, hidden states hardly depend on the signal.
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1 and "embed" not in name:
                    weight.mul_(4)
    model.save_pretrained(folder)
    kind = "Wav2Vec2" if family != "Whisper" else family
    extractor = getattr(transformers, f"{kind}FeatureExtractor")
    extractor(
        **({"do_normalize": family == "HuBERT"} if kind != family else {})
    ).save_pretrained(folder)
    return pathlib.Path(folder)


if __name__ == "__main__":
    for family in FAMILIES:
        make_encoder(family, pathlib.Path(sys.argv[1]) / family)
