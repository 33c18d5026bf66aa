"""Commands that read a data set and write files, such as prepare, encode, assign, generate and reshard."""
