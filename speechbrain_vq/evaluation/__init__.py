"""What the units are worth: unit quality, reconstruction, plots, report.

Authors
 * speechbrain_vq authors 2026
"""
