"""Audio files in, batches out.

Authors
 * speechbrain_vq authors 2026
"""
