"""PEFT: its names, its format, its live layers, and its formulas."""
