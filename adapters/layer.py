"""The layer that takes the place of a linear layer: a frozen base, the method's tensors, the method's forward."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from deltaw.adapters.clock import Seen, StepCounter
from deltaw.adapters.constants import SharedConstant
from deltaw.adapters.method import Method, State
from deltaw.adapters.residual import PRECISE, residual_of
from deltaw.adapters.sharded import full, is_sharded

WIDENED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class AdaptedLayer(nn.Module):
    """A linear layer under a method.

    ``weight`` and ``bias`` are the original's own parameters, frozen and under their own names, so a state dict of the
    base model still loads. The method's tensors stand beside them (``lora_A``, ``magnitude``, …), trainable ones as
    parameters and frozen ones as buffers, in float32 where the base is of lower precision.

    PiSSA and CorDA multiply by the ``residual`` in the place of W₀. It follows from W₀ and the method's tensors and is
    made anew with them, so it is neither a parameter nor a buffer: it is in no state dict, and DDP, which sends all
    buffers to all processes in every forward, leaves it alone.

    Arguments:
        source: An ``nn.Linear``, or transformers' ``Conv1D``, which stores its weight transposed.
        method: The method.
        generator: Source of the initial random numbers, on the CPU.
        transposed: Whether ``source.weight`` is [in, out].
        given: What the method's start rests on beside W₀ (``Method.start``).
        state: The method's tensors, if they are known already; then nothing is drawn.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        source: nn.Module,
        method: Method,
        generator: torch.Generator,
        transposed: bool = False,
        given: State | None = None,
        state: State | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.transposed = transposed
        self._adopt(source)
        self.out_features, self.in_features = self.base.shape
        self.train(source.training)

        dtype = WIDENED.get(self.base_dtype, self.base_dtype)
        trainable = method.shapes(self.out_features, self.in_features)
        if state is None:
            on_cpu = self.base.detach().to("cpu", dtype)
            state = method.start(on_cpu, generator, given or {})
        for name, initial in state.items():
            value = initial.to(self.weight.device, dtype if initial.is_floating_point() else None)
            if name in trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self._names = tuple(trainable) + tuple(method.frozen_shapes(self.out_features, self.in_features))
        self._trainable = tuple(trainable)
        self._steps = StepCounter(self, self._trainable) if method.moving else None
        self._shared: dict[str, SharedConstant] = {}
        self._residual: Tensor | None = None
        self._residual_of: Seen | None = None  # the weight that it was made of
        self._make_residual()

    def _adopt(self, source: nn.Module) -> None:
        """Take over the original's parameters."""
        weight = source.get_parameter("weight")
        weight.requires_grad_(False)
        self.register_parameter("weight", weight)
        bias = getattr(source, "bias", None)
        self.register_parameter("bias", None if bias is None else bias.requires_grad_(False))

    @property
    def base(self) -> Tensor:
        """W₀, (out, in)."""
        return self.weight.T if self.transposed else self.weight

    @property
    def residual(self) -> Tensor | None:
        """W₀ − U V (out, in), where the method takes a part U V out of W₀; ``None`` where it takes W₀ as it is.

        It is made anew after a change of the weight, as by an optimizer that had it for a while, or by DDP's first
        broadcast, which may also have brought other U and V. While the weight is trained there is none.
        """
        if not torch.compiler.is_compiling():
            if self.weight.requires_grad:
                self._residual, self._residual_of = None, None
            elif not is_sharded(self.weight) and self._residual_is_stale():
                self._make_residual()
        residual = self._residual
        usable = residual is not None and residual.dtype == self.weight.dtype and not self.weight.requires_grad
        return residual if usable else None

    @property
    def holds_residual(self) -> bool:
        """Whether there is a residual."""
        return self.residual is not None

    @property
    def base_dtype(self) -> torch.dtype:
        """The dtype of W₀."""
        return self.weight.dtype

    def tensor(self, name: str) -> Tensor:
        """Return one of the method's tensors."""
        value: Tensor = getattr(self, name)
        return value

    def state(self) -> dict[str, Tensor]:
        """Return the method's tensors by name; they are not copies."""
        return {name: self.tensor(name) for name in self._names}

    def forward(self, x: Tensor) -> Tensor:
        """Return x W'ᵀ + b."""
        self.observe()
        return self.method.forward(self, x)

    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """Return W' (out, in), in float32 where the base is of lower precision."""
        self.observe()
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.method.weight(self._wide_base(), self.state())

    @torch.no_grad()
    def update(self) -> Tensor:
        """Return ΔW = W' − W₀, (out, in)."""
        self.observe()
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.method.update(self._wide_base(), self.state())

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) with ΔW = U V exactly, or ``None`` where the method has no such form."""
        self.observe()
        return self.method.factors(self._wide_base(), self.state())

    def steps_taken(self) -> int:
        """Return how many optimizer steps the method's parameters went through since the last call."""
        return 0 if self._steps is None else self._steps.taken()

    def observe(self) -> None:
        """Let the method take note of the layer's state, before that is used or read, and at every step."""
        self.method.observe(self)

    def extra_repr(self) -> str:
        """Shape and method, for ``print(model)``."""
        options = ", ".join(f"{key}={value!r}" for key, value in self.method.options().items())
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.method.name}({options})"

    def _wide_base(self) -> Tensor:
        return self.base.to(WIDENED.get(self.base_dtype, self.base_dtype))

    def _make_residual(self) -> None:
        """Make the residual of W₀ as it is now; where the weight is sharded, in all processes together."""
        self._residual, self._residual_of = None, Seen(self.weight)
        if self.weight.dtype in PRECISE and self.weight.device.type != "meta":
            with torch.inference_mode(False), torch.no_grad():  # made while evaluating, it serves training as well
                if taken := self.method.residual(self.state()):
                    self._residual = residual_of(full(self.base), *taken)

    def _residual_is_stale(self) -> bool:
        if self._residual_of is None:
            return True
        # FSDP2 puts another parameter in the weight's place for a forward, perhaps one of less precision: no change.
        changed = self._residual_of.changed(self.weight)
        return changed or (self._residual is not None and self._residual.device != self.weight.device)

    def constants(self) -> list[str]:
        """Return the names of the tensors that never change."""
        return self.method.constants(self.out_features, self.in_features)

    def share(self, name: str, constant: SharedConstant) -> None:
        """Have a constant in common with other layers from now on, also when the model is moved."""
        self._shared[name] = constant
        setattr(self, name, constant.tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the layer; what it has in common with other layers of its shape stays in common."""
        before = {name: self.tensor(name) for name in self._shared}
        kind = self.weight.dtype, self.weight.device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if kind != (self.weight.dtype, self.weight.device):
            self._make_residual()
        for name, old in before.items():
            if (moved := self._shared[name].moved(old, self.tensor(name))) is None:
                del self._shared[name]
            else:
                setattr(self, name, moved)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        with torch.no_grad():
            self.observe()  # what is saved is what the next forward would use
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._make_residual()
        own = self._shared.items()  # ``assign=True`` gives every layer a tensor of its own
        self._shared = {name: constant for name, constant in own if constant.tensor is self.tensor(name)}
        if self._steps is not None:
            self._steps.loaded()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._residual_of = Seen(self.weight)  # a copy's is of the copy
        if self._steps is not None:
            self._steps.follow(self)  # a copy counts for itself
