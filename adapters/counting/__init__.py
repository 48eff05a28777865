"""Trainable parameters, counted without weights."""
