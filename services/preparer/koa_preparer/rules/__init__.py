"""The named rules, and the identity of a frame: pure functions of what a file holds."""

from . import common, optics, program, statistics
from .catalogue import core_metadata, program_of
from .frame import Extra, Frame, Identity, Note, Set, View
from .identity import identify
from .program import ProgramId, identify_program
from .registry import RULES, Outcome, check_rules, rule, run_rules

__all__ = [
    "RULES",
    "Extra",
    "Frame",
    "Identity",
    "Note",
    "Outcome",
    "ProgramId",
    "Set",
    "View",
    "check_rules",
    "core_metadata",
    "identify",
    "identify_program",
    "program_of",
    "rule",
    "run_rules",
]

_MODULES = (common, optics, program, statistics)  # importing them names their rules
