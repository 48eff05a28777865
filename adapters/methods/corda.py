"""CorDA: LoRA that starts from the singular triples of W₀ seen through the inputs' covariance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.method import State
from deltaw.adapters.methods.pissa import ResidualPair
from deltaw.adapters.modules import linear_modules
from deltaw.adapters.patterns import matching


@dataclass(frozen=True, kw_only=True)
class CorDA(ResidualPair):
    r"""Context-oriented decomposition adaptation.

        W₀ C = U S Vᵀ,    W₀ = U S V̂ᵀ with V̂ᵀ = Vᵀ C⁻¹,    C = Σ_t x_t x_tᵀ / tokens, the covariance of the inputs
        A₀ = √S_I V̂_Iᵀ / √s,    B₀ = U_I √S_I / √s,    W' = (W₀ − s·B₀ A₀) + s·B A

    I are the r largest singular values for the task given by the batches ("ipm", instruction-previewed), or the r
    smallest, so that what the batches need stays as it is ("kpm", knowledge-preserved). A and B start as A₀ and B₀, so
    W' = W₀ at the start. Trainable: r·(out + in).

    The authors' code and PEFT divide the inputs of every forward pass by their largest entry before they are summed;
    here every token counts alike, as in equation 2.

    C is made invertible as the paper does (Appendix A): ``damping`` times the mean of its diagonal is added to the
    diagonal, and doubled until ‖C C⁻¹ − I‖_F is below 0.05.

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``. The paper has s = 1.
        mode: "ipm" or "kpm".
        damping: The first share of the mean diagonal that is added.

    Raises:
        OptionError: The mode is neither, ``damping`` is not above 0, or (on injecting) no covariance is given.

    Source:
        Yang et al. 2024, "CorDA", equations 2 to 6.
    """

    name = "corda"
    title = "CorDA"
    formula = "the same, from the singular triples of W₀C, C the covariance of the inputs"
    source = "Yang et al. 2024"
    counts = "r·(out + in)"
    look = ("#332288", "X")

    mode: Literal["ipm", "kpm"] = "ipm"
    damping: float = 0.01

    needs_context: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("ipm", "kpm"):
            raise OptionError(f"mode must be 'ipm' or 'kpm', not {self.mode!r}")
        if not 0 < self.damping < float("inf"):
            raise OptionError(f"damping must be above 0, not {self.damping!r}")

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """There is none without data."""
        del base, generator
        raise OptionError("corda starts from data: pass context=input_covariances(model, targets, batches) to inject")

    @override
    def start(self, base: Tensor, generator: torch.Generator, given: State) -> dict[str, Tensor]:
        """The chosen pair, twice: to train and to subtract."""
        if "covariance" not in given:
            return self.initial(base, generator)
        wide, C = base.double(), given["covariance"].to("cpu", torch.float64)
        C, inverse = self._invertible(C)
        U, S, Vh = torch.linalg.svd(wide @ C, full_matrices=False)
        chosen = slice(0, self.rank) if self.mode == "ipm" else slice(len(S) - self.rank, len(S))
        root = S[chosen].sqrt()
        return self.started_at(root[:, None] * (Vh[chosen] @ inverse), U[:, chosen] * root, base.dtype)

    def _invertible(self, C: Tensor) -> tuple[Tensor, Tensor]:
        identity, mean = torch.eye(len(C), dtype=C.dtype), C.diagonal().mean()
        if not mean > 0:
            raise OptionError("corda: the inputs of a module are all zero in the batches; give others")
        damping = self.damping
        while True:
            damped = C + damping * mean * identity
            inverse = torch.linalg.inv(damped)
            if torch.dist(damped @ inverse, identity) < 0.05:
                return damped, inverse
            damping *= 2


@torch.no_grad()
def input_covariances(model: nn.Module, targets: Sequence[str] | str, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Return C = Σ_t x_t x_tᵀ / tokens (in, in) in float64 for the inputs x_t of every target, over some batches.

    Arguments:
        model: The plain model; it is run in evaluation mode and left in the mode it was in.
        targets: Glob patterns over module names.
        batches: Mappings (called as ``model(**batch)``), tuples (``model(*batch)``) or single inputs.

    Raises:
        TargetError: A pattern matches no linear layer.
        OptionError: There is no batch, or a target is not used by the model.

    Source:
        CorDA, equation 2.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> input_covariances(model, "0", [torch.tensor([[1.0, 0.0], [1.0, 2.0]])])["0"].tolist()
        [[1.0, 1.0], [1.0, 2.0]]
    """
    layers = dict(linear_modules(model))
    chosen = matching(layers, [targets] if isinstance(targets, str) else targets, "target")
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(chosen, 0)

    def watch(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + x.T @ x
            counts[name] += len(x)

        return add

    handles = [layers[name].register_forward_pre_hook(watch(name)) for name in chosen]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            if hasattr(batch, "keys"):
                model(**batch)
            elif isinstance(batch, (tuple, list)):
                model(*batch)
            else:
                model(batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    unused = [name for name in chosen if not counts[name]]
    if unused:
        raise OptionError(f"no input reached module {unused[0]!r} in the batches; give at least one batch that uses it")
    return {name: sums[name] / counts[name] for name in chosen}
