"""The formats of others: one source each, and how their tensors are the matrices of layers."""
