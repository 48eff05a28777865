"""Shared by the figures: style, axes, panels, rows, layer positions, curves, and saving."""
