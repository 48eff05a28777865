"""Reproduce a paper's weight picture: train, record, measure, draw, and hold the result against the paper."""

from deltaw.trainers.reproduce.bora import BORA_METHODS, reproduce_bora
from deltaw.trainers.reproduce.common import FORMATS, Report, results_table
from deltaw.trainers.reproduce.dora import DORA_METHODS, reproduce_dora
from deltaw.trainers.reproduce.dual_lora import reproduce_dual_lora
from deltaw.trainers.reproduce.every import reproduce_all, summary_page
from deltaw.trainers.reproduce.sbora import SBORA_METHODS, reproduce_sbora

__all__ = [
    "BORA_METHODS",
    "DORA_METHODS",
    "FORMATS",
    "SBORA_METHODS",
    "Report",
    "reproduce_all",
    "reproduce_bora",
    "reproduce_dora",
    "reproduce_dual_lora",
    "reproduce_sbora",
    "results_table",
    "summary_page",
]
