"""Weights that are stored in fewer bits: which tensors are a matrix together, and the matrix that they stand for."""
