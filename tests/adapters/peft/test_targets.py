"""Patterns of an adapter's configuration: as PEFT matches them, in bounded time, or refused by name."""

import re
import time

import pytest

from deltaw.adapters.errors import DataError, RecordError
from deltaw.adapters.peft.targets import LONGEST, fits, fits_whole, saved_whole

NAMES = [f"model.layers.{k}.self_attn.{kind}" for k in (0, 1, 3, 5, 10, 11) for kind in ("q_proj", "v_proj", "o_proj")]
NAMES += ["q_proj", "old.model.layers.1.self_attn.q_proj", "vision.layers.1.q_proj", "layersx1xq_proj", "lm_head", ""]
HARMLESS = [
    "q_proj",
    "self_attn.q_proj",
    r".*\.layers\.3\..*(q_proj|k_proj)$",
    "^model.layers.0.self_attn.q_proj",
    r"layers\.(?:1|2|10)\.self_attn\.q_proj",
    r"layers\.(1[0-1]|[5-9])\.self_attn\.(q_proj|v_proj)",
    r"model\.layers\.(\d)+\.self_attn\.q_proj",
    r"(model\.)*layers\.1\.self_attn\.q_proj",
    r".*layers.*1.*self_attn.*q_.*",
    "|".join(rf"model\.layers\.{k}\.self_attn\.q_proj" for k in range(40)),
    r"layers\.(?!11)\d+\.self_attn\.v_proj",
    r"layers\.(?=1)\d+\.self_attn\.v_proj",
    r"(?!.*vision).*q_proj",
    r"^(?!.*(?:vision|old)).*(?:q_proj|v_proj)$",
    r"[^]()|]*q_proj",
    r"[(?!]*q_proj",
    r"\(?q_proj",
    r"model\b.*\bq_proj",
    "layers.1{1,2}.self_attn.q_proj",
    "(?P<kind>[qv])_proj",
]
HOSTILE = ["(a+)+b", "(a|a)*b", "(a|aa)+b", "(.*)*b", "a?" * 40 + "a" * 40 + "b", "(a|aa)" * 30 + "b",
           ".*a" * 100 + "b", "(?!.*.*.*b)(.*a)*b", "((a{0,30}){0,30})*b"]  # fmt: skip


@pytest.mark.parametrize("pattern", HARMLESS)
def test_as_peft_matches(pattern):
    for name in NAMES:
        assert fits(pattern, name, "here") == (re.match(rf"(.*\.)?({pattern})$", name) is not None), name
        assert fits_whole(pattern, name, "here") == (re.fullmatch(pattern, name) is not None), name
        wanted = re.match(rf"(^|.*\.){pattern}($|\..*)", name) is not None
        if "|" not in pattern and "(" not in pattern:  # where PEFT sets no brackets of its own
            assert saved_whole(name, [pattern], "here") == wanted, name


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_hostile_pattern_costs_little(pattern):
    began = time.perf_counter()
    for name in ("a" * 40, "a" * LONGEST, "model." * 100 + "a" * 40):
        try:
            assert not fits(pattern, name, "here")
        except RecordError as error:
            assert "no expression that can be matched" in str(error)  # noqa: PT017 - either is right
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "a)|(b", "*", r"(a)\1", "(?<=a)b", "(?>a)", "a++", "(?i)Q", "[[:alpha:]]", r"\pL", r"\Qa\E", "a{,3}",
     "." * 10_001, "(?!b)" + "a?" * 1000, 3, None, "a(b(?!c))", "a|(?!b)c", "(?!a)b(?!c)", "(?!a", "(?!a)*", "a{2000}",
     "((a{1000}){1000}){1000}"],
)  # fmt: skip
def test_what_cannot_be_matched_is_refused(pattern):
    with pytest.raises(RecordError, match=r"here: the pattern .* in alpha_pattern is no expression") as caught:
        fits(pattern, "abc", "here", "alpha_pattern")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    with pytest.raises(DataError, match="modules_to_save"):
        saved_whole("abc", [pattern], "here", DataError)


def test_names_that_cannot_be_matched():
    for name, pattern in (("a" * (LONGEST + 1), "a.*"), ("a\nb", "a.*"), ("é", r"\w")):
        with pytest.raises(RecordError, match="here"):
            fits(pattern, name, "here")
    assert fits("é", "layers.é", "here")
