"""Bridges to training loops. Each module is the only place that imports its trainer."""
