"""Sums over the pairs of a batch, one backend a file, and the loss that is made of them.

`objective` asks a backend for a few sums over the pairs of each anchor (`pairs.PairSums`) and turns them into the loss. `dense`
computes them as the formulas read; `chunked` and `fused` never hold a matrix of all pairs, share one operator (`op`) and offer
two functions of one signature, ``forward`` and ``backward``.
"""
