"""Speaker embeddings by name and by pretrained encoders."""

from importlib import import_module

import pytest
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_vq import VectorQuantizer
from speechbrain_vq.lobes import speakers
from speechbrain_vq.lobes.autoencoder import SpeakerEncoder
from speechbrain_vq.lobes.speakers import SpeakerTable, voices
from speechbrain_vq.recipe_files import recipe_path
from tests.lobes.encoders import ECAPA, XVECTOR, build_speaker, write_encoder

recipe = import_module("speechbrain_vq.recipes.VCTK.voice-conversion.train")
ConversionBrain = recipe.ConversionBrain
find_encoder, load_encoder = recipe.find_encoder, recipe.load_encoder

KINDS = {"ecapa": ECAPA, "xvector": XVECTOR}


def filled(names=("p226", "p225", "s5"), room=6):
    table = SpeakerTable(room, 4)
    table.fill(names)
    return table


def test_table_does_not_depend_on_the_order_of_names():
    table = filled()
    assert table.names == ["p225", "p226", "s5"]
    again = SpeakerTable(6, 4)
    again.fill(["s5", "p225", "p226", "p225"])
    again.weight.data.copy_(table.weight)
    names = ["s5", "p226"]
    assert torch.equal(again(names), table(names))
    assert not torch.equal(table(["s5"]), table(["p226"]))


def test_zero_embedding_is_the_average_of_named_speakers():
    table = filled()
    assert table(table.names).mean(0).abs().max() < 1e-6
    # Unnamed rows do not count.
    table.weight.data[3:] = 1000.0
    assert table(table.names).abs().max() < 100


def test_state_dict_contains_the_names():
    table, other = filled(["é", "{x}"]), SpeakerTable(6, 4)
    other.load_state_dict(table.state_dict())
    assert other.names == table.names == ["{x}", "é"]
    assert all(torch.is_tensor(value) for value in table.state_dict().values())


def test_unknown_names_are_an_error_or_the_average():
    table = filled()
    with pytest.raises(ValueError, match="No speaker 'p22'. Did you mean 'p22"):
        table(["p225", "p22"])
    embeddings = table(["p225", "p22"], known_only=False)
    assert torch.equal(embeddings[:1], table(["p225"]))
    assert torch.equal(embeddings[1], torch.zeros(4))


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "data has 0 speakers"),
        ([f"p{i}" for i in range(7)], "7 speakers, and the table holds"),
        (["p" * 65], "must have 1 to 64 bytes"),
        ([""], "must have 1 to 64 bytes"),
    ],
)
def test_invalid_names_are_rejected(names, message):
    with pytest.raises(ValueError, match=message):
        SpeakerTable(6, 4).fill(names)


def test_gradients_reach_the_batch_speakers_only():
    table = filled()
    table(["p225", "p226"])[:, 0].sum().backward()
    # The mean passes the same gradient to all named rows.
    gradient = table.weight.grad[:, 0]
    assert torch.allclose(gradient[:3], torch.tensor([1.0, 1.0, -2.0]) / 3)
    assert torch.equal(gradient[3:], torch.zeros(3))


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_equal_speechbrains(kind, tmp_path):
    from speechbrain.inference.speaker import EncoderClassifier

    folder = write_encoder(tmp_path / kind, KINDS[kind])
    savedir = str(tmp_path / "savedir")
    classifier = EncoderClassifier.from_hparams(str(folder), savedir=savedir)
    speaker = build_speaker(KINDS[kind])
    load_encoder(speaker, find_encoder(folder))
    wavs = torch.randn(2, 16000) / 10
    expected = classifier.encode_batch(wavs).flatten(1)
    expected = torch.nn.functional.normalize(expected, dim=1)
    assert torch.allclose(speaker.eval()._embed(wavs), expected, atol=1e-5)
    # Padding changes nothing.
    batch = torch.nn.functional.pad(wavs, (0, 4000))
    batch[1, 12000:] = 7.0
    together = speaker(batch, torch.tensor([0.8, 0.6]))
    for row, number in enumerate((16000, 12000)):
        alone = speaker(batch[row : row + 1, :number], torch.ones(1))
        assert torch.allclose(together[row], alone[0], atol=1e-5)


def test_the_encoder_is_frozen_and_the_rest_is_trained():
    speaker = build_speaker(ECAPA).train()
    before = {k: v.clone() for k, v in speaker.state_dict().items()}
    trained = [p for p in speaker.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 0.1)
    out = speaker(torch.randn(4, 9000), torch.ones(4))
    out.square().mul(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    for name, value in speaker.state_dict().items():
        frozen = name.split(".")[0] in ("compute_features", "embedding_model")
        changed = not torch.equal(value, before[name])
        assert changed is not frozen, name


@pytest.mark.parametrize("samples", [0, 1, 300, 7999])
def test_very_short_speech_has_finite_embeddings(samples):
    speaker = build_speaker(ECAPA).eval()
    wavs, lengths = torch.randn(1, 8000), torch.tensor([samples / 8000])
    assert speaker(wavs, lengths).isfinite().all()


def test_mismatched_encoders_are_rejected(tmp_path):
    folder = write_encoder(tmp_path / "xvector", XVECTOR)
    with pytest.raises(ValueError, match="does not fit .*embedding_model"):
        load_encoder(build_speaker(ECAPA), find_encoder(folder))
    state = build_speaker(ECAPA).embedding_model.state_dict()
    state["fc.conv.bias"][0] = float("nan")
    torch.save(state, folder / "embedding_model.ckpt")
    with pytest.raises(ValueError, match="fc.conv.bias' have values .* NaN"):
        load_encoder(build_speaker(ECAPA), find_encoder(folder))
    (folder / "embedding_model.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="has no embedding_model.ckpt"):
        find_encoder(folder)
    # Nor is the Hub asked.
    for name in (str(tmp_path / "none"), "../encoder", "./a/b"):
        with pytest.raises(FileNotFoundError, match=f"no folder '{name}'"):
            find_encoder(name)
    yaml = ECAPA.replace("norm_type: sentence", "norm_type: global")
    with pytest.raises(ValueError, match="must be of the type 'sentence'"):
        build_speaker(yaml)
    with pytest.raises(ValueError, match="requires 16000 Hz, .* 24000 Hz: set"):
        build_speaker(f"{ECAPA}    sample_rate: 24000\n")


def test_model_folders_may_build_them(tmp_path):
    from speechbrain_vq.hub.plain import ModelYaml

    yaml = recipe_path("VCTK/voice-conversion/hparams/ecapa.yaml")
    assert "ECAPA_TDNN" in yaml.read_text()
    for yaml in KINDS.values():
        (tmp_path / "model.yaml").write_text(yaml)
        mine = ModelYaml(tmp_path / "model.yaml").build("cpu")["speaker"]
        assert isinstance(mine, speakers.PretrainedSpeaker)
        keys = build_speaker(yaml).state_dict().keys()
        assert mine.state_dict().keys() == keys


def test_voices_passes_each_module_its_input():
    wavs = torch.randn(2, 8000), torch.ones(2)
    features = torch.randn(2, 50, 20), torch.ones(2)
    encoder = SpeakerEncoder(20, 8).eval()
    assert torch.equal(voices(encoder, wavs, features), encoder(*features))
    speaker = build_speaker(ECAPA).eval()
    assert torch.equal(voices(speaker, wavs, features), speaker(*wavs))
    table = filled()
    embeddings = voices(table, wavs, features, ["p225", "new"])
    assert torch.equal(embeddings, table(["p225", ""], known_only=False))
    assert not voices(table, wavs, features).any()


def meet(tmp_path, speaker, items):
    hparams = {"speaker": speaker, "data_folder": str(tmp_path)}
    modules = {"speaker": speaker, "quantizer": VectorQuantizer(4, 8)}
    brain = ConversionBrain(modules, torch.optim.Adam, hparams)
    data = {}
    for split in ("train", "valid", "test"):
        data[split] = DynamicItemDataset(dict(items))
        data[split].set_output_keys(brain.items)
    brain.set_up(data)
    return data["train"]


def test_speakers_may_be_numbers(tmp_path):
    table = SpeakerTable(4, 4)
    items = {name: {"spk_id": 7 - n, "sig": 0} for n, name in enumerate("ab")}
    data = meet(tmp_path, table, items)
    assert table.names == ["6", "7"]
    batch = PaddedBatch([data[0], data[1]])
    assert batch.spk_id == ["7", "6"]
    table(batch.spk_id)


@pytest.mark.parametrize("missing", [{}, {"spk_id": ""}, {"spk_id": None}])
def test_only_tables_require_speaker_names(missing, tmp_path):
    items = {"a": {"sig": 0, "spk_id": 0}, "b": {"sig": 0, **missing}}
    with pytest.raises(ValueError, match=f"'b' of train.*{tmp_path}") as error:
        meet(tmp_path, SpeakerTable(4, 4), items)
    assert "train.yaml" in str(error.value)
    assert set(meet(tmp_path, SpeakerEncoder(20, 4), items)[1]) == {"id", "sig"}
