"""The level of waveforms."""

import pytest
import soundfile
import torch

from speechbrain_vq.dataio.waveforms import with_level_of, write_waveform


def test_level_is_that_of_the_original():
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    compressed = 0.5 * noise.sign()
    levels = {}
    for original in (compressed, 0.1 * compressed):
        wav = with_level_of(original, 0.01 * noise)
        assert wav.abs().max() <= 1
        # Neither clipped, nor changed in the order of the samples.
        assert torch.equal(wav.argsort(), noise.argsort())
        levels[original] = 10 * (wav.square().mean() / original.square().mean())
    assert levels[compressed].log10() > -0.1
    torch.testing.assert_close(
        wav, noise * (0.05 / noise.square().mean().sqrt())
    )
    assert not with_level_of(compressed, torch.zeros(9)).any()
    # A constant is not heard.
    shifted = with_level_of(0.01 * noise + 0.3, 0.5 * noise)
    assert float(shifted.std() / (0.01 * noise).std()) == pytest.approx(1)


def test_16_bits_are_rounded(tmp_path):
    wav = torch.rand(9999, generator=torch.Generator().manual_seed(0)) - 0.5
    wav[:3] = torch.tensor([1.0, -1.0, 1e-6])
    for name in ("a.wav", "a.flac"):
        write_waveform(tmp_path / name, wav, 16000, "")
        read = torch.from_numpy(soundfile.read(tmp_path / name)[0])
        error = (read - wav.double()) * 2**15
        assert error[1:].abs().max() <= 0.5 and abs(error.mean()) < 0.02
        assert error[0] == -1  # There is no 32768.


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_written(value, tmp_path):
    wav = torch.tensor([0.0, value, 0.5])
    with pytest.raises(ValueError, match="NaN or infinity"):
        write_waveform(tmp_path / "a.wav", wav, 16000, "")
    assert not list(tmp_path.iterdir())
