"""Image autoencoder: local receptive fields."""

import pytest
import torch

from speechbrain_vq.lobes.images import (
    ImageDecoder,
    ImageEncoder,
    to_unit,
    truncated_levels,
)


def test_truncation_of_the_reference_code_lowers_63_levels():
    levels = torch.arange(256)
    assert to_unit(levels[[0, 255]]).tolist() == [-0.5, 0.5]
    truncated = truncated_levels(levels)
    assert (levels - truncated).bincount().tolist() == [193, 63]
    assert torch.equal(truncated_levels(levels.to(torch.uint8)), truncated)


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_depend_on_nearby_pixels_only(channels):
    encoder = ImageEncoder(channels, 32, channels=8).eval()
    image = torch.randint(256, (1, channels, 32, 32))
    other = image.clone()
    # Change the first row's last pixel.
    other[:, :, 0, 31] = 255 - other[:, :, 0, 31]
    moved = (encoder(image) - encoder(other)).abs().sum(-1)[0] > 0
    assert moved.shape == (8, 8)
    # Two 3 x 3 blocks reach two latents, the strided layers less than one.
    assert moved[0, 7] and not moved[4:].any() and not moved[:, :4].any()


def test_pixels_depend_on_nearby_latents_only():
    decoder = ImageDecoder(32, 3, channels=8).eval()
    latents = torch.randn(1, 8, 8, 32)
    other = latents.clone()
    other[:, 0, 7] += 1
    moved = (decoder(latents) - decoder(other)).abs().sum((0, 1, 2)) > 0
    assert moved.shape == (32, 32)
    assert moved[1, 30] and not moved[16:].any() and not moved[:, :16].any()


def test_each_channel_has_its_own_distribution():
    """Raising one level's bias of one channel changes the most likely level
    of that channel only."""
    decoder = ImageDecoder(32, 3, channels=8).eval()
    latents = torch.randn(2, 8, 8, 32)
    before = decoder(latents).argmax(1)
    with torch.no_grad():
        decoder.layers[-2].bias.view(256, 3)[200, 1] += 100
    after = decoder(latents).argmax(1)
    assert (after[:, 1] == 200).all()
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])


def test_autoencoder_overfits_an_image():
    image = torch.randint(256, (1, 3, 8, 8))
    model = torch.nn.Sequential(
        ImageEncoder(3, 32, channels=32), ImageDecoder(32, 3, channels=32)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(image), image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(image).argmax(1) == image).float().mean() > 0.9
