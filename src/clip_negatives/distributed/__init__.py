"""Runs on several processes: joining them, shared results and errors, gathered tensors."""
