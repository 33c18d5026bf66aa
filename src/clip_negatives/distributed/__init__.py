"""Runs on several processes: start, shared results and errors, gathered tensors."""
