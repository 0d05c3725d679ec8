"""The named rules, and the identity of a frame: pure functions of what a file holds."""

from . import common  # noqa: F401 (importing it names its rules)
from .catalogue import core_metadata, program_of
from .frame import Frame, Note, Set, View
from .identity import identify
from .program import identify_program, schedule_of
from .registry import RULES, Outcome, check_rules, rule, run_rules

__all__ = ["RULES", "Frame", "Note", "Outcome", "Set", "View", "check_rules", "core_metadata"]
__all__ += ["identify", "identify_program", "program_of", "rule", "run_rules", "schedule_of"]
