"""Loaders whose batches carry the identity of their samples."""
