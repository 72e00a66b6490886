"""Encoders, decoders and speaker embeddings that recipes name in yaml."""
