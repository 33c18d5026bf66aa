"""Backends of the loss, one per module: each computes sums over the pairs of a batch; `objective` turns them into the loss."""
