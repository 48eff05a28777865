"""One reader of result.json: typed and strict, whoever asks."""

import json
import math

import pytest

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.run_folder.results import LIMIT, RESULT, read_result, write_result
from deltaw.analysis.tables.results import results

SETTINGS = {"method": "bora", "options": {"rank": 8, "alpha": 16.0}}
VALUES = {"method": "bora", "out": "runs/bora", "trainable": 500, "share": 0.1, "best_mcc": 0.6, "n_dev": 1043}


def test_a_result_is_read_as_it_was_written(tmp_path):
    assert read_result(tmp_path) is None
    write_result(tmp_path, SETTINGS, VALUES | {"scores": {"vqa": 0.5}, "n_dev": {"vqa": 64}})
    found = read_result(tmp_path)
    assert (found.settings, found.options) == (SETTINGS, {"rank": 8, "alpha": 16.0})
    assert found.values["scores"] == {"vqa": 0.5}


def test_answers_are_kept_and_may_be_missing(tmp_path):
    answers = {"labels": "0110", "predictions": "0100"}
    write_result(tmp_path, SETTINGS, VALUES, answers)
    assert read_result(tmp_path).dev == answers
    write_result(tmp_path, SETTINGS, VALUES)
    assert set(json.loads((tmp_path / RESULT).read_text())) == {"settings", "result"}
    assert read_result(tmp_path).dev == {}


def test_what_was_not_measured_is_null_in_the_file(tmp_path):
    write_result(tmp_path, SETTINGS, VALUES | {"seconds_per_epoch": math.nan})
    assert "NaN" not in (tmp_path / RESULT).read_text()
    assert read_result(tmp_path).values["seconds_per_epoch"] is None
    (tmp_path / RESULT).write_text(json.dumps({"settings": SETTINGS, "result": {"seconds_per_epoch": math.nan}}))
    assert math.isnan(read_result(tmp_path).values["seconds_per_epoch"])  # as earlier versions wrote it


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ("[]", "no mapping"),
        ('{"settings": {}}', "must be mappings"),
        ('{"settings": {"options": []}, "result": {}}', "options must be a mapping"),
        ('{"settings": {}, "result": {"best_mcc": NaN}}', "best_mcc is nan"),
        ('{"settings": {"learning_rate": -Infinity}, "result": {}}', "learning_rate is -inf"),
        ('{"settings": {}, "result": {"best_mcc": 1e999}}', "best_mcc is inf"),
        ('{"settings": {}, "result": {"best_mcc": "high"}}', "best_mcc is 'high', it should be a number"),
        ('{"settings": {}, "result": {"epochs": true}}', "epochs is True"),
        ('{"settings": {}, "result": {"method": 3}}', "method is 3, it should be a text"),
        ('{"settings": {}, "result": {"scores": [1]}}', "scores is"),
        ('{"settings": {}, "result": {"n_dev": {"vqa": "x"}}}', "n_dev is"),
        ('{"settings": {}, "result": {}, "dev": {"labels": "01"}}', "as many zeros and ones"),
        ('{"settings": {}, "result": {}, "dev": {"labels": "01", "predictions": "0"}}', "as many zeros and ones"),
        ('{"settings": {}, "result": {}, "dev": {"labels": "01", "predictions": "02"}}', "as many zeros and ones"),
        ('{"settings": {}, "result": {}, "dev": 3}', "as many zeros and ones"),
        ('{"settings": {"a": ' + nested(40) + '}, "result": {}}', "nested more than 20 deep"),
        ('{"settings": {"a": ' + nested(100_000) + '}, "result": {}}', "damaged"),
        ('{"settings": {}, "result": {"seed": 1' + "0" * 30 + "}}", "seed is too large"),
        ('{"settings": {}, "result": {"seed": 1' + "0" * 5000 + "}}", "damaged"),
        ("\xff", "damaged"),
        (" " * (LIMIT + 1), "at most"),
    ],
)  # fmt: skip
def test_a_damaged_result_is_named_with_its_file(text, said, tmp_path):
    (tmp_path / RESULT).write_bytes(text.encode("latin-1"))
    with pytest.raises(RecordError, match=rf"result\.json: is damaged.*{said}" if said != "damaged" else "damaged"):
        read_result(tmp_path)
    with pytest.raises(RecordError, match=r"result\.json"):
        results([tmp_path])
