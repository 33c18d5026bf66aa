"""Commands that read a data set and write files: prepare, generate, reshard."""
