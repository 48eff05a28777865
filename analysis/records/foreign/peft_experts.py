"""LoRA on parameters (``target_parameters``): which parameter an adapter is for, and an expert's part of it.

PEFT wraps the module that holds the parameters, once for each of them. The file names the wrappers only: ``….experts``
is the parameter that was registered last, ``….experts.base_layer`` the one before it, and so on.

    A (E·r, in), B (out, r·E), E experts:  A_e = A[e·r : (e + 1)·r],  B_e = B[:, e::E],  ΔW_e = s·B_e A_e

A stack that PEFT takes for [experts, out, in] though it is [experts, in, out] gives ΔW_eᵀ.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.names import BASE_LAYER
from deltaw.analysis.records.foreign.base import GIVE, Base, Stack
from deltaw.analysis.records.foreign.layout import module_name
from deltaw.analysis.records.source import Shape

Shapes = Mapping[str, tuple[int, ...]]
WRAPPED = f".{BASE_LAYER}"


@dataclass(frozen=True)
class Parameter:
    """The part of an adapted parameter that is one module of ours.

    Arguments:
        holder: The module under whose name the file has the adapter.
        name: The parameter's full name, which the patterns of the configuration mean.
        shape: (out, in).
        expert: Which of the stack it is; 0 of 1 for a plain matrix.
        experts: How many there are.
        turned: Whether the update is stored as [in, out].
    """

    holder: str
    name: str
    shape: Shape
    expert: int = 0
    experts: int = 1
    turned: bool = False

    def of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the expert's own tensors, as those of a LoRA on a linear layer."""
        A, B = state["lora_A"], state["lora_B"]
        if self.experts > 1:
            A = A.reshape(self.experts, -1, A.shape[-1])[self.expert]
            B = B.reshape(len(B), -1, self.experts)[:, :, self.expert]
        return {"lora_A": B.T, "lora_B": A.T} if self.turned else {"lora_A": A, "lora_B": B}


def parameters(
    holders: Mapping[str, Shapes], targets: Any, base: Base | None, original: Callable[[str], str], where: str
) -> tuple[dict[str, Parameter], set[str]]:
    """Return the modules that adapted parameters are, by name, and the names in the file that they come from.

    Arguments:
        holders: The shapes of the adapter's tensors, by the module's name in the file.
        targets: ``target_parameters``.
        base: Tells what parameters there are.
        original: Gives the name in the base of what may be a copied layer.
        where: For messages.

    Raises:
        RecordError: No base was given, it lacks a parameter, or it cannot be told which is which.
    """
    found: dict[str, Parameter] = {}
    used: set[str] = set()
    for module, nested, last in _meant(holders, targets, where):
        if base is None:
            raise RecordError(f"{where}: the adapter of {module} does not tell its parameters, its base does; {GIVE}")
        known = {f"{module}.{end}": base.stack(original(f"{module}.{end}")) for end in sorted(last)}
        stacks = {name: stack for name, stack in known.items() if stack is not None}
        if not stacks and nested == [module]:
            continue  # a linear layer that target_modules named
        if len(stacks) != len(nested):
            raise RecordError(
                f"{where}: {len(nested)} parameters of {module} were adapted, the base has {len(stacks)} of them as "
                "matrices; is it the model that was trained? transformers stacks some as it loads them: give it loaded"
            )
        sides = {holder: _sides(holders[holder], holder, where) for holder in nested}
        names = _assigned(nested, stacks, sides, where)
        turned = _turned(names, stacks, sides, where)
        for holder, name in names.items():
            used.add(holder)
            found |= _modules(
                Parameter(holder, name, stacks[name].shape, turned=turned[holder]), holders, stacks, where
            )
    return found, used


def needing_base(holders: Collection[str], targets: Any, where: str) -> set[str]:
    """Return the names in the file that ``target_parameters`` means, of which the base tells the parameter."""
    return {holder for _, nested, _ in _meant(holders, targets, where) for holder in nested}


def _meant(holders: Collection[str], targets: Any, where: str) -> Iterator[tuple[str, list[str], set[str]]]:
    """The modules whose parameters may be adapted: each with its wrappers and the parameters' own names."""
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise RecordError(f"{where}: target_parameters = {targets!r:.60} is no list of names")
    levels: dict[str, list[str]] = {}  # the innermost wrapper, which is the first parameter, comes first
    for holder in sorted(holders, key=len, reverse=True):
        module = holder
        while module.endswith(WRAPPED):
            module = module.removesuffix(WRAPPED)
        levels.setdefault(module, []).append(holder)
    for module, nested in levels.items():
        last = {target.rpartition(".")[2] for target in targets if f".{module}.x".endswith(_holder(target))}
        if last:
            yield module, nested, last


def _holder(target: str) -> str:
    """``.….experts.x`` of a target ``….experts.down_proj``: what a module's name must end in."""
    head = target.rpartition(".")[0]
    return f".{head}.x" if head else ".x"


def _assigned(nested: list[str], stacks: Mapping[str, Stack], sides: Mapping[str, Shape], where: str) -> dict[str, str]:
    """The parameter of each wrapper: by the model's order where it is known, else by the shapes."""
    places = {name: stack.position for name, stack in stacks.items() if stack.position is not None}
    if len(places) == len(stacks):
        assigned = dict(zip(nested, sorted(places, key=places.__getitem__), strict=True))
    else:
        fitting = {holder: [n for n, stack in stacks.items() if _fit(sides[holder], stack)] for holder in nested}
        assigned = {holder: names[0] for holder, names in fitting.items() if len(names) == 1}
        if len(set(assigned.values())) < len(nested):
            raise RecordError(
                f"{where}: which of {', '.join(stacks)} is which follows from their order in the model; give base as "
                "the model itself"
            )
    for holder, name in assigned.items():
        if not _fit(sides[holder], stacks[name]):
            raise RecordError(f"{where}: the adapter of {name} is {sides[holder]}, the base has {stacks[name].shape}")
    return assigned


def _fit(sides: Shape, stack: Stack) -> bool:
    return sides == stack.shape or (stack.turned and sides == stack.shape[::-1])


def _turned(
    names: Mapping[str, str], stacks: Mapping[str, Stack], sides: Mapping[str, Shape], where: str
) -> dict[str, bool]:
    """Whether a wrapper's update is [in, out]: PEFT takes what is stored for [out, in], unless the model says not so.

    A square stack does not tell, another one of the same experts does.
    """
    told = [s != stacks[names[h]].shape for h, s in sides.items() if stacks[names[h]].turned and s[0] != s[1]]
    found = {}
    for holder, name in names.items():
        stack = stacks[name]
        if stack.experts and stack.turned and stack.shape[0] == stack.shape[1] and not told:
            raise RecordError(
                f"{where}: {name} is stored as [experts, in, out] and is square, so its adapter does not tell its "
                "sides; merge it with PEFT"
            )
        found[holder] = stack.turned and (told[0] if stack.experts and told else True)
    return found


def _modules(
    whole: Parameter, holders: Mapping[str, Shapes], stacks: Mapping[str, Stack], where: str
) -> dict[str, Parameter]:
    """A parameter's modules, one an expert."""
    count = stacks[whole.name].experts
    ranks = holders[whole.holder]["lora_A"][0], holders[whole.holder]["lora_B"][1]
    if ranks[0] != ranks[1] or ranks[0] % (count or 1):
        raise RecordError(f"{where}: the ranks {ranks} of {whole.name} are not those of {count or 1} experts")
    if not count:
        return {module_name(whole.name) or whole.name: whole}
    head, _, last = whole.name.rpartition(".")
    return {f"{head}.{k}.{last}": replace(whole, expert=k, experts=count) for k in range(count)}


def _sides(shapes: Shapes, holder: str, where: str) -> Shape:
    """(out, in) as the adapter has it."""
    A, B = shapes.get("lora_A", ()), shapes.get("lora_B", ())
    if len(A) != 2 or len(B) != 2:
        raise RecordError(f"{where}: the tensors of {holder} do not go together ({A} and {B})")
    return B[0], A[1]
