"""Adapters for training loops. Each trainer is imported by its own module only."""
