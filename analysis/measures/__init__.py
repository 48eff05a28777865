"""The measures: pure functions of tensors."""
