"""What the figures share: style, axes, panels, rows, layer positions, curves, and saving."""
