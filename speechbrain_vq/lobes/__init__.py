"""Encoders and decoders that the recipes name in yaml.

Authors
 * speechbrain_vq authors 2026
"""
