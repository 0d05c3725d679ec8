"""The named rules and how they are run: pure functions that yield effects."""

import inspect
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, ValidationError, ValidationInfo, create_model

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


def _one_of(field: str) -> AfterValidator:
    def check(name: str, info: ValidationInfo) -> str:
        if name not in getattr(info.context, field):
            raise ValueError(f"{field} hold no {name!r}")
        return name

    return AfterValidator(check)


# Parameters: keywords, the name of one of the instrument's tables or choices.
Keys = tuple[str, ...]
Table = Annotated[str, _one_of("tables")]
Choice = Annotated[str, _one_of("choices")]
# Rule by name: gives it the parameters of a call; raises ValidationError for wrong ones.
RULES: dict[str, Callable[[RuleCall, Instrument], Function]] = {}


def rule(name: str) -> Callable[[F], F]:
    """Register a function as the rule `name`; its keywords are the parameters."""

    def register(function: F) -> F:
        spec = inspect.getfullargspec(function)
        kinds, defaults = spec.annotations, spec.kwonlydefaults or {}
        fields: dict[str, Any] = {k: (kinds[k], defaults.get(k, ...)) for k in spec.kwonlyargs}
        model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)

        def bind(call: RuleCall, instrument: Instrument) -> Function:
            return partial(function, **dict(model.model_validate(call.params, context=instrument)))

        RULES[name] = bind
        return function

    return register


def check_rules(instruments: Mapping[str, Instrument]) -> None:
    """Raise InstrumentError for a rule that is unknown or whose parameters are wrong."""
    for instrument in instruments.values():
        for number, call in enumerate(instrument.rules, 1):
            where = f"{instrument.name}.toml: rule {number}, {call.rule!r}"
            if call.rule not in RULES:
                raise InstrumentError(f"{where}, is unknown")
            try:
                RULES[call.rule](call, instrument)
            except ValidationError as error:
                raise InstrumentError(f"{where}: {error}") from error


@dataclass(slots=True)
class Outcome:
    """What the rules made of a frame; `extra` stands in the metadata but in no header."""

    keywords: dict[str, tuple[Value, str]] = field(default_factory=dict)  # value and comment
    extra: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def updates(self) -> list[tuple[str, Value, str]]:
        """The keywords as `koa_shared.fits.edit_header` takes them."""
        return [(keyword, *pair) for keyword, pair in self.keywords.items()]

    def take(self, frame: Frame, step: str, effects: Iterable[Effect]) -> None:
        """Take what a step did; the frame shows it from then on."""
        for effect in effects:
            match effect:
                case Set(keyword, value, comment):
                    value = frame.values[keyword] = card_value(value)
                    comment = comment or COMMENTS.get(keyword, "Set by the archive")
                    self.keywords[keyword] = (value, f"KOA: {comment}")
                case Extra(keyword, value):
                    frame.values[keyword] = self.extra[keyword] = clean(value)
                case Note(code, message, severity):
                    found = Finding(code=code, severity=severity, step=step, message=message)
                    self.findings.append(found)


def run_rules(frame: Frame, calls: Iterable[RuleCall]) -> Outcome:
    """Mend the header as its identity says, then run the rules; a crash is a finding."""
    outcome, identity = Outcome(), frame.identity
    outcome.take(frame, "identity", (*identity.updates, *identity.notes))
    for call in calls:
        effects: Iterable[Effect] = ()
        try:
            if frame.holds(call.when):
                effects = tuple(RULES[call.rule](call, frame.instrument)(frame))
        except Exception as error:  # noqa: BLE001 (the next ones run all the same)
            severity = Severity.ERROR if call.critical else Severity.WARNING
            text = f"{type(error).__name__}: {error}"[:500]
            effects = (Note("RULE_CRASHED", text, severity),)
        outcome.take(frame, call.rule, effects)
    return outcome


def card_value(value: Value) -> Value:
    """Return a value that fits one card: no NaN, ASCII only, 68 characters."""
    if isinstance(value, float):
        return clean(value) if math.isfinite(value) else NULL
    match clean(value):
        case str(text):
            text = text.encode("ascii", "xmlcharrefreplace").decode()
            text = "".join(c if c.isprintable() else " " for c in text)[:LONGEST]
            while len(text) + text.count("'") > LONGEST:
                text = text[:-1]
            return text
        case None:
            return NULL
        case number:
            return number if abs(number) < HUGE else NULL
