"""Batches that carry the identity of their samples."""
