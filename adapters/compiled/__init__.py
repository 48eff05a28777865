"""Loops compiled by numba, on torch's own threads."""
