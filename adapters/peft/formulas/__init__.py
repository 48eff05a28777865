"""The updates of PEFT's adapters: ΔW = W' − W₀ from their tensors, by formulas of our own.

Every formula is held by a test to the forward of PEFT's own layer, of version 0.21. PEFT's ``get_delta_weight`` is not
W' − W₀ for DoRA, HiRA, PiSSA and others; these are. W₀ and ΔW are [out, in] for every layer, Conv1D too.

A formula takes the layer's tensors ``t`` under PEFT's names, and ``s``, which knows the options, the shape, the tensors
that layers share, and W₀. It returns U (out, r) and V (r, in) with ΔW = U V, or else ΔW.
"""
