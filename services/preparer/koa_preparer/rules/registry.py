"""The named rules and how they are run.

A rule is a function of a frame and of the parameters its instrument's file gives; it
yields what it sets and what it noticed, and may not read or write anything else.
"""

import inspect
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    create_model,
)

from koa_shared.contracts import Finding, Severity
from koa_shared.fits import Value, clean
from koa_shared.instruments import Instrument, InstrumentError, RuleCall

from .frame import Effect, Extra, Frame, Note, Set

Function = Callable[..., Iterable[Effect]]
F = TypeVar("F", bound=Function)
NULL = "null"  # what the archive writes for no value (facts 3.3)
COMMENTS = tomllib.loads((resources.files("koa_shared") / "data" / "comments.toml").read_text())
HUGE = 2**63  # no whole number of a frame is so large; its digits may not fit a card
LONGEST = 68  # characters of a text value in one card (FITS Standard 4.2.1)


@dataclass(frozen=True, slots=True)
class Names:
    """Marks a parameter that names one of the instrument's tables or choices."""

    field: str


TableName = Annotated[str, Names("tables")]
ChoiceName = Annotated[str, Names("choices")]


@dataclass(frozen=True, slots=True)
class Rule:
    """A named rule and the model of its parameters."""

    name: str
    function: Function
    params: type[BaseModel]

    def read(self, call: RuleCall) -> dict[str, Any]:
        """Return a call's parameters, checked; raises ValidationError."""
        model = self.params.model_validate(call.params)
        return {name: getattr(model, name) for name in self.params.model_fields}


RULES: dict[str, Rule] = {}


def rule(name: str) -> Callable[[F], F]:
    """Register a function as the rule `name`; its keywords are the parameters."""

    def register(function: F) -> F:
        fields: dict[str, Any] = {
            p.name: (p.annotation, ... if p.default is p.empty else p.default)
            for p in inspect.signature(function).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        config = ConfigDict(extra="forbid")
        RULES[name] = Rule(name, function, create_model(name, __config__=config, **fields))
        return function

    return register


@dataclass(slots=True)
class Outcome:
    """What the rules made of a frame.

    `keywords` are value and comment in order of setting; `extra` stands in the metadata
    but in no header.
    """

    keywords: dict[str, tuple[Value, str]] = field(default_factory=dict)
    extra: dict[str, Value] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def updates(self) -> list[tuple[str, Value, str]]:
        """The keywords as `koa_shared.fits.edit_header` takes them."""
        return [(keyword, *pair) for keyword, pair in self.keywords.items()]


def run_rules(frame: Frame, calls: Iterable[RuleCall]) -> Outcome:
    """Mend the header as its identity says, then run the rules in order.

    One that crashes is the finding RULE_CRASHED, and the next ones run all the same.
    """
    outcome = Outcome()
    identity = frame.identity
    _apply(frame, outcome, "identity", (*identity.updates, *identity.notes))
    for call in calls:
        try:
            effects = _run(frame, call)
        except Exception as error:  # noqa: BLE001 (see docstring)
            severity = Severity.ERROR if call.critical else Severity.WARNING
            text = f"{type(error).__name__}: {error}"[:500]
            effects = (Note("RULE_CRASHED", text, severity),)
        _apply(frame, outcome, call.rule, effects)
    return outcome


def _run(frame: Frame, call: RuleCall) -> Iterable[Effect]:
    if not frame.holds(call.when):
        return ()
    rule = RULES[call.rule]
    return tuple(rule.function(frame, **rule.read(call)))


def _apply(frame: Frame, out: Outcome, step: str, effects: Iterable[Effect]) -> None:
    for effect in effects:
        match effect:
            case Set(keyword, value, comment):
                value = frame.values[keyword] = card_value(value)
                comment = comment or COMMENTS.get(keyword, "Set by the archive")
                out.keywords[keyword] = (value, f"KOA: {comment}")
            case Extra(keyword, value):
                frame.values[keyword] = out.extra[keyword] = clean(value)
            case Note(code, message, severity):
                found = Finding(code=code, severity=severity, step=step, message=message)
                out.findings.append(found)


def card_value(value: Value) -> Value:
    """Return a value that fits one card: no NaN, ASCII only, 68 characters."""
    if isinstance(value, float) and not math.isfinite(value):
        return NULL
    value = clean(value)
    if value is None:
        return NULL
    if not isinstance(value, str):
        return value if isinstance(value, float) or abs(value) < HUGE else NULL
    text = value.encode("ascii", "xmlcharrefreplace").decode()
    text = "".join(c if c.isprintable() else " " for c in text)[:LONGEST]
    while len(text) + text.count("'") > LONGEST:
        text = text[:-1]
    return text


def check_rules(instruments: Mapping[str, Instrument]) -> None:
    """Check that all rules exist and that their parameters are right.

    Raises InstrumentError, with the file's name; called at the preparer's start.
    """
    for instrument in instruments.values():
        for number, call in enumerate(instrument.rules, 1):
            where = f"{instrument.name}.toml: rule {number}, {call.rule!r}"
            if call.rule not in RULES:
                raise InstrumentError(f"{where}, is unknown")
            try:
                params = RULES[call.rule].read(call)
            except ValidationError as error:
                raise InstrumentError(f"{where}: {error}") from error
            for name, info in RULES[call.rule].params.model_fields.items():
                for mark in info.metadata:
                    known = getattr(instrument, mark.field) if isinstance(mark, Names) else None
                    if known is not None and params[name] not in known:
                        raise InstrumentError(f"{where}: {mark.field} hold no {params[name]!r}")
