"""The interfaces of DASB and EnCodec, with one codebook and several."""

import pytest
import torch

from speechbrain_vq import ResidualVectorQuantizer, VectorQuantizer
from speechbrain_vq.inference import EncodecAdapter

RATE = 16000
QUANTIZERS = {
    "one": lambda: VectorQuantizer(8, 32),
    "projected": lambda: VectorQuantizer(8, 32, codebook_dim=3),
    "product": lambda: VectorQuantizer(8, 32, num_codebooks=4),
    "residual": lambda: ResidualVectorQuantizer(3, 8, 32),
    "row of residuals": lambda: VectorQuantizer(8, 32, None, 3, "residual"),
    "residual of one": lambda: ResidualVectorQuantizer(1, 8, 32),
    "projected residual": lambda: ResidualVectorQuantizer(3, 8, 32, 5),
}


@pytest.fixture(params=QUANTIZERS)
def codec(request, build):
    return build(QUANTIZERS[request.param]())


def test_shapes_and_names(codec):
    quantizer = codec.mods.quantizer
    books, size, dim = quantizer.codebook.shape
    encodec = EncodecAdapter(codec)
    assert codec.num_codebooks == encodec.num_heads == books
    assert codec.vocab_size == encodec.num_tokens == size
    assert encodec.emb_dim == dim
    assert codec.sample_rate == encodec.sample_rate == RATE
    assert torch.equal(encodec.vocabulary, quantizer.codebook)
    wavs, lengths = torch.randn(2, RATE), torch.tensor([1.0, 0.5])
    tokens, vectors = encodec.encode(wavs, lengths)
    assert tokens.shape == (2, 50, books)
    assert vectors.shape == (2, 50, books, dim)
    assert torch.equal(encodec.embeddings(tokens), vectors)
    assert torch.equal(encodec(wavs, lengths)[0], tokens)
    assert torch.equal(tokens, codec.sig_to_tokens(wavs, lengths))
    plain, _ = codec.encode_batch(wavs, lengths)
    assert torch.equal(tokens.reshape(plain.shape), plain)
    assert encodec.decode(tokens, lengths).shape == (2, 1, RATE)
    assert codec.tokens_to_sig(tokens).shape == (2, RATE)
    assert torch.equal(codec.tokens_to_sig(tokens), codec.decode_batch(plain))


def test_embeddings_are_what_the_quantizer_codes(codec):
    quantizer = codec.mods.quantizer
    tokens = codec.sig_to_tokens(torch.randn(2, RATE))
    vectors = codec.embeddings(tokens)
    for book in range(codec.num_codebooks):
        rows = quantizer.codebook[book][tokens[..., book]]
        assert torch.equal(vectors[:, :, book], rows)
    residual = quantizer.composition == "residual"
    whole = vectors.sum(2) if residual else vectors.flatten(2)
    folded = tokens.squeeze(-1) if quantizer.folds else tokens
    projected = quantizer.project_back(whole)
    torch.testing.assert_close(projected, quantizer.decode(folded))


def test_the_table_has_a_block_for_each_codebook(codec):
    books, size, dim = codec.mods.quantizer.codebook.shape
    table = codec.get_pretrained_embeddings()
    assert table.shape == (books * size, dim)
    tokens = codec.sig_to_tokens(torch.randn(1, RATE))
    rows = table[tokens + size * torch.arange(books)]
    assert torch.equal(rows, codec.embeddings(tokens))
    few = codec.get_pretrained_embeddings(vocab_size=4, num_codebooks=1)
    assert torch.equal(few, codec.mods.quantizer.codebook[0, :4])
    with pytest.raises(ValueError, match="vocab_size=33"):
        codec.get_pretrained_embeddings(33)
    # It is a copy, to train.
    table.zero_()
    assert codec.mods.quantizer.codebook.any()


def test_some_of_the_codebooks(build):
    codec = build(QUANTIZERS["product"]())
    wavs = torch.randn(2, RATE)
    tokens = codec.sig_to_tokens(wavs)
    first = codec.sig_to_tokens(wavs, num_codebooks=2)
    assert torch.equal(first, tokens[..., :2])
    some = codec.sig_to_tokens(wavs, num_codebooks=[3, 1])
    assert torch.equal(some, tokens[..., [3, 1]])
    for wrong in (5, 0, [4], [-1], []):
        with pytest.raises(ValueError, match="a number from 1 to 4"):
            codec.sig_to_tokens(wavs, num_codebooks=wrong)
    with pytest.raises(ValueError, match="of 4 codebooks are"):
        codec.tokens_to_sig(first)
    # Only those of a residual quantizer can be left out.
    codec.use_codebooks(4)
    message = "decodes from all 4 of its"
    with pytest.raises(ValueError, match=message):
        codec.use_codebooks(3)
    with pytest.raises(ValueError, match=message):
        codec.decode_batch(tokens, num_codebooks=3)


def test_a_model_encodes_and_decodes_with_its_first_codebooks(build):
    codec = build(QUANTIZERS["row of residuals"]())
    wavs = torch.randn(2, RATE)
    tokens, lengths = codec.encode_batch(wavs)
    few = codec.decode_batch(tokens, lengths, num_codebooks=2)
    assert not torch.equal(few, codec.decode_batch(tokens, lengths))
    encodec = EncodecAdapter(codec)
    codec.use_codebooks(2)
    assert codec.num_codebooks == 2
    assert encodec.num_heads == len(encodec.vocabulary) == 2
    assert torch.equal(encodec.vocabulary, codec.mods.quantizer.codebook[:2])
    found, codewords = encodec.encode(wavs)
    half = torch.tensor([1.0, 0.5])
    assert torch.equal(encodec.tokens(codewords), found)
    assert not encodec.tokens(codewords, half)[1, 25:].any()
    decoded = encodec.decode(found, half)
    assert torch.equal(encodec.decode_emb(codewords, half), decoded)
    assert torch.equal(codec.encode_batch(wavs)[0], tokens[..., :2])
    assert torch.equal(codec.sig_to_tokens(wavs), tokens[..., :2])
    assert torch.equal(codec.decode_batch(tokens[..., :2], lengths), few)
    codec.use_codebooks(1)
    assert codec.encode_batch(wavs)[0].shape == (2, 50, 1)
    codec.use_codebooks(None)
    assert torch.equal(codec.encode_batch(wavs)[0], tokens)
    first = codec.decode_batch(tokens, num_codebooks=1)
    assert torch.equal(codec.tokens_to_sig(tokens[..., :1]), first)
    message = "decodes from 1 to 3 of its codebooks"
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=message):
            codec.use_codebooks(wrong)
        with pytest.raises(ValueError, match=message):
            codec.decode_batch(tokens, num_codebooks=wrong)


def silence_token(model, **options):
    """Find the token of silence, and its codeword, as DASB does."""
    audio, length = torch.zeros(1, 100_000), torch.ones(1)
    tokens = model(audio, length, **options)[0].squeeze(0).mode(0).values
    return tokens, model.embeddings(tokens[None, None]).squeeze()


def test_the_token_of_silence(codec):
    tokens, codewords = silence_token(codec)
    silence = codec.sig_to_tokens(torch.zeros(1, 100_000))[0]
    assert tokens.shape == (codec.num_codebooks,)
    codebook = codec.mods.quantizer.codebook
    codewords = codewords.view(-1, codebook.shape[-1])
    for book, token in enumerate(tokens):
        assert (silence[:, book] == token).float().mean() > 0.9
        assert torch.equal(codewords[book], codebook[book, token])
    first, _ = silence_token(codec, num_codebooks=1)
    assert torch.equal(first, tokens[:1])


def test_what_moved_to_the_adapter_is_reported(build):
    codec = build()
    for name in ("encode", "decode", "num_heads", "vocabulary"):
        with pytest.raises(AttributeError, match=r"EncodecAdapter\(tokenizer"):
            getattr(codec, name)
    with pytest.raises(AttributeError, match="nothing"):
        codec.nothing  # noqa: B018
