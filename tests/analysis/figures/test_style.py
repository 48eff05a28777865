"""The methods' colours and markers: their own, or distinct ones that come by themselves."""

import pytest

from deltaw.adapters import METHODS
from deltaw.adapters.methods.lora import LoRA
from deltaw.analysis.figures.drawing.panels import scale_group
from deltaw.analysis.figures.drawing.style import method_styles


class Own(LoRA):
    look = ("#123456", "*")


class Plain(LoRA):
    look = None


def test_every_method_has_a_look_of_its_own() -> None:
    styles = method_styles(list(METHODS))
    assert len(set(styles.values())) == len(METHODS)
    assert styles["lora"] == ("#0072B2", "o")


def test_a_method_from_outside_gets_a_look_by_itself(monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "own", Own)
    monkeypatch.setitem(METHODS, "plain", Plain)
    monkeypatch.setitem(METHODS, "plainer", Plain)
    styles = method_styles([*METHODS, "unknown"])
    assert styles["own"] == ("#123456", "*")
    assert len(set(styles.values())) == len(METHODS) + 1
    automatic = {styles.pop(name)[0] for name in ("plain", "plainer", "unknown")}
    assert len(automatic) == 3
    assert not automatic & {color for color, _ in styles.values()}
    # The same in every figure, whatever stands beside it.
    assert method_styles(["plainer", "plain"])["plainer"] == method_styles(["plainer"])["plainer"]


def test_many_unknown_names_are_told_apart() -> None:
    names = [f"run {index}" for index in range(40)]
    styles = method_styles([*METHODS, *names])
    assert len(set(styles.values())) == len(METHODS) + 40


@pytest.mark.parametrize(
    ("name", "group"), [("ft", "ft"), ("galore", "ft"), ("lora", "adapters"), ("mine", "adapters")]
)
def test_what_trains_the_matrices_themselves_has_a_scale_of_its_own(name, group) -> None:
    assert scale_group(name, "adapters") == group
    assert scale_group(name, "all") == "all"
    assert scale_group(name, "none") == name
