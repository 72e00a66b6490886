"""The phone recognisers learn, whatever the corpus."""

import json
from importlib import import_module

import pytest
import torch
from speechbrain.dataio.encoder import CTCTextEncoder

from speechbrain_vq.inference import VQPretrained
from speechbrain_vq.lobes.recogniser import SummedBLSTM
from speechbrain_vq.recipe_files import recipe_path
from speechbrain_vq.recipes.FestvoxRu import festvoxru_prepare
from speechbrain_vq.recipes.LibriSpeech import librispeech_prepare
from speechbrain_vq.recipes.WSJ import wsj_prepare
from tests.recipe_tests.phone_corpora import (
    festvoxru_files,
    make_deb,
    make_festvoxru,
    make_librispeech,
    make_wsj,
)
from tests.recipe_tests.processes import short_options

recipe = import_module("speechbrain_vq.recipes.WSJ.phone-recognition.train")

CORPORA = {
    "FestvoxRu": (make_festvoxru, festvoxru_prepare.prepare),
    "WSJ": (make_wsj, wsj_prepare.prepare),
    "LibriSpeech": (make_librispeech, librispeech_prepare.prepare),
}


def start(corpus, data, folder, **options):
    """A run of the recipe in this process; its Brain and results."""
    name = f"{corpus}/phone-recognition"
    options = {
        **short_options(name, "train"),
        **data,
        "manifest_folder": folder.parent / "manifests",
        "output_folder": folder,
        **options,
    }
    brain = recipe.run(
        CORPORA[corpus][1],
        [str(recipe_path(f"{name}/hparams/train.yaml")), "--noprogressbar"]
        + [f"--{k}={v}" for k, v in options.items() if v is not None],
    )
    return brain, json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("corpus", CORPORA)
def test_from_a_corpus_to_a_model(corpus, tmp_path):
    data = CORPORA[corpus][0](tmp_path)
    folder = tmp_path / "out"
    options = {"number_of_steps": 80, "hidden_size": 32, "codebook_size": 32}
    brain, results = start(corpus, data, folder, **options)
    assert results["preset"] == "robust" and results["steps"] == 80
    # The phones are tones: a recogniser that learns tells them.
    assert results["per"] < 50
    assert results["phones"] > 10 and results["vectors"] > 50
    assert results["perplexity"] > 2
    # What is loaded hears what the Brain heard.
    model = VQPretrained.from_hparams(folder / "model")
    encoder = CTCTextEncoder()
    encoder.load(folder / "model/label_encoder.txt")
    assert encoder.lab2ind == brain.hparams.label_encoder.lab2ind
    wavs, lengths = torch.randn(2, 8000) / 10, torch.ones(2)
    log_probs = []
    for modules in (model.mods, brain.modules.eval()):
        with torch.no_grad():
            x, seen = modules.encoder(*modules.features(wavs, lengths))
            vq = modules.quantizer(x, seen)
            log_probs.append(modules.recogniser(vq.quantized, seen))
    torch.testing.assert_close(*log_probs)
    # Who runs it again finds it done.
    assert start(corpus, data, folder, **options)[1] == results


@pytest.mark.slow
def test_more_phones_than_labels_are_reported(tmp_path):
    with pytest.raises(ValueError, match="give --num_labels=7"):
        data = make_festvoxru(tmp_path)
        start("FestvoxRu", data, tmp_path / "out", num_labels=6)


@pytest.mark.slow
def test_utterances_that_ctc_cannot_learn_are_left_out(tmp_path):
    files, _ = festvoxru_files()
    lab = next(k for k in files if k.endswith("ru_0001.lab"))
    # More phones than there are codes in 0.64 s.
    lines = (f"{(i + 1) * 0.01:.2f} 125 a\n" for i in range(64))
    files[lab] = f"#\n{''.join(lines)}".encode()
    files[lab.replace("ru_0001", "ru_0002")] = b"#\n0.64 125 pau\n"
    make_deb(tmp_path / "festvox-ru_0.5_all.deb", files)
    data = {"data_folder": tmp_path}
    options = {"number_of_steps": 2, "preset": "none", "vq": None}
    start("FestvoxRu", data, tmp_path / "out", **options)
    log = (tmp_path / "out/log.txt").read_text()
    assert "2 of 52 utterances are left out" in log
    with pytest.raises(ValueError, match="at most 0.1 seconds"):
        start("FestvoxRu", data, tmp_path / "short", longest=0.1)


def test_the_blstm_is_that_of_packed_sequences():
    blstm = SummedBLSTM(5, 8, num_layers=1)
    both = torch.nn.LSTM(5, 8, batch_first=True, bidirectional=True)
    state = blstm.forwards[0].state_dict()
    for name, value in blstm.backwards[0].state_dict().items():
        state[f"{name}_reverse"] = value
    both.load_state_dict(state)
    x, lengths = torch.randn(3, 9, 5), torch.tensor([9, 4, 1])
    rnn = torch.nn.utils.rnn
    packed = rnn.pack_padded_sequence(x, lengths, batch_first=True)
    expected, _ = rnn.pad_packed_sequence(both(packed)[0], batch_first=True)
    expected = expected[..., :8] + expected[..., 8:]
    torch.testing.assert_close(blstm(x, lengths / 9), expected)
