"""The layer that takes the place of a linear layer: a frozen base, the method's tensors, the method's forward."""

import weakref
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from deltaw.adapters.clock import follow, version
from deltaw.adapters.method import Method, State
from deltaw.adapters.residual import Lost, can_be_held, restored, subtracted
from deltaw.adapters.sharded import full, spread_like

_MOVED: weakref.WeakValueDictionary[Any, Tensor] = weakref.WeakValueDictionary()  # what moved, by what it was

WIDENED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return what is equal for two tensors that are the same part of the same memory."""
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return (*place, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


class AdaptedLayer(nn.Module):
    """A linear layer under a method.

    ``weight`` and ``bias`` are the original's own parameters, frozen and under their own names, so a state dict of the
    base model still loads. (PiSSA and CorDA have a residual for ``weight``; ``base`` and the state dict have W₀.) The
    method's tensors stand beside them (``lora_A``, ``magnitude``, …), trainable ones as parameters and frozen ones as
    buffers, in float32 where the base is of lower precision.

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
    _lost: Lost | None = None  # of W₀, where ``weight`` is a residual

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
        self._told = 0  # optimizer steps that the method has not taken note of
        self._has_optimizer = False
        self._read: tuple[int, int] | None = None  # the parameter's, at the last pass that can lead to a step
        if method.moving:
            follow(self)
        self._take_out()

    def _adopt(self, source: nn.Module) -> None:
        """Take over the original's parameters."""
        weight = source.get_parameter("weight")
        weight.requires_grad_(False)
        self.register_parameter("weight", weight)
        bias = getattr(source, "bias", None)
        self.register_parameter("bias", None if bias is None else bias.requires_grad_(False))

    @property
    def held(self) -> Tensor:
        """What stands in the place of W₀, (out, in): W₀, or the residual."""
        return self.weight.T if self.transposed else self.weight

    @property
    def holds_residual(self) -> bool:
        """Whether a residual stands in the place of W₀."""
        return self._lost is not None

    @property
    def base(self) -> Tensor:
        """W₀, (out, in); made again, bit for bit, where a residual stands in its place."""
        factors = None if self._lost is None else self.method.taken_out(self.state())
        if self._lost is None or factors is None:
            return self.held
        return restored(full(self.held), *factors, self._lost)

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
        self.method.observe(self)
        return self.method.forward(self, x)

    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """Return W' (out, in), in float32 where the base is of lower precision."""
        self.method.observe(self)
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.method.weight(self._wide_base(), self.state())

    @torch.no_grad()
    def update(self) -> Tensor:
        """Return ΔW = W' − W₀, (out, in)."""
        self.method.observe(self)
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.method.update(self._base_of_factors(), self.state())

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) with ΔW = U V exactly, or ``None`` where the method has no such form."""
        self.method.observe(self)
        return self.method.factors(self._base_of_factors(), self.state())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def steps_taken(self) -> int:
        """Return how many optimizer steps the method's parameters went through since the last call.

        As long as no optimizer has made one, a change by hand counts: one between two looks, after a forward pass with
        gradients. What changes parameters before the training begins, such as loading or DDP's first broadcast, is no
        step.

        Never compiled: compiled code takes the count for a constant, and would not see a step.
        """
        told, self._told = self._told, 0
        if self._has_optimizer:
            return told
        before, now = self._read, version(self.tensor(self._trainable[0]))
        changed = before is not None and before[0] == now[0] and before != now
        if torch.is_grad_enabled():
            self._read = now
        elif changed:
            self._read = None
        return int(changed)

    def counted_parameter(self) -> Tensor | None:
        """Return the parameter whose optimizer's steps count: the method's first that is trained."""
        parameters = (self._parameters.get(name) for name in self._trainable)
        return next((p for p in parameters if p is not None and p.requires_grad), None)

    def optimizer_stepped(self) -> None:
        """Hear of a step, at once: now the parameters are what the step has made of them, and whole in precision."""
        self._has_optimizer = True
        self._told += 1
        self.method.observe(self)

    def extra_repr(self) -> str:
        """Shape and method, for ``print(model)``."""
        options = ", ".join(f"{key}={value!r}" for key, value in self.method.options().items())
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.method.name}({options})"

    def _wide_base(self) -> Tensor:
        return self.base.to(WIDENED.get(self.base_dtype, self.base_dtype))

    def _base_of_factors(self) -> Tensor:
        return self.held if self.holds_residual else self._wide_base()  # which then is not looked at

    @torch.no_grad()
    def _take_out(self) -> None:
        """Put the residual in the place of W₀, where the method has one and W₀ can be made of it again."""
        if self._lost is not None or not can_be_held(self.weight):
            return
        if factors := self.method.taken_out(self.state()):
            residual, self._lost = subtracted(full(self.held), *factors)
            self._hold(residual)

    @torch.no_grad()
    def _put_back(self) -> None:
        """Put W₀ in the place of the residual."""
        if self._lost is not None:
            base, self._lost = self.base, None
            self._hold(base)

    def _hold(self, matrix: Tensor) -> None:
        """Put a matrix (out, in) in the place of W₀: as another parameter, for the old one may be others' as well."""
        stored = spread_like(matrix.T.contiguous() if self.transposed else matrix, self.weight)
        if self.weight.requires_grad:  # an optimizer may have it
            self.weight.copy_(stored)
        else:
            self.weight = nn.Parameter(stored, requires_grad=False)

    def constants(self) -> list[str]:
        """Return the names of the tensors that never change."""
        return self.method.constants(self.out_features, self.in_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the layer; what it has in common with other layers of its shape stays in common."""
        if self.holds_residual and fn(torch.empty(0, dtype=self.weight.dtype)).dtype != self.weight.dtype:
            self._put_back()
        before = {name: self.tensor(name) for name in self.constants()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.device.type == "meta":
            self._lost = None
        self._take_out()
        for name, old in before.items():
            moved = self.tensor(name)
            if "meta" in (old.device.type, moved.device.type):
                continue  # holds no values that could be the same
            if moved.untyped_storage().data_ptr() == old.untyped_storage().data_ptr():
                continue
            key = (identity(old), moved.dtype, moved.device)
            kept = _MOVED.setdefault(key, moved)
            if kept is not moved and torch.equal(kept, moved):
                setattr(self, name, kept)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        with torch.no_grad():
            self.method.observe(self)  # what is saved is what the next forward would use
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.holds_residual:
            base = self.base.T.contiguous() if self.transposed else self.base
            destination[prefix + "weight"] = spread_like(base, self.weight)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._put_back()  # what is loaded is W₀
        super()._load_from_state_dict(*args, **kwargs)
        self._take_out()
        self._read = None  # loading writes to the parameters, but is no step

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.method.moving:
            follow(self)  # a copy counts for itself
