"""Backends of the loss, one file each, and the log-weights that they share.

Every backend has two functions of one signature:

* ``both(x, y, scale, bias, terms)``: x and y are (n, D), pair i is row i of both; half the mean cross-entropy of the
  rows plus half that of the columns;
* ``rows(x, y, scale, bias, x_terms, y_terms, offset, images_are_rows)``: x is (B, D), y is (G, D), the positive of row
  i is row ``offset + i`` of y; the mean cross-entropy of the rows.
"""
