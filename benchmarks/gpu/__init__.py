"""One program for a GPU machine, with or without a network: tests of the kernels and benchmarks. See README.md."""
