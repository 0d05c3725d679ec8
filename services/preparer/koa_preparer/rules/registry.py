"""The named rules and how they are run: pure functions that yield effects."""

import inspect
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ValidationError, ValidationInfo, create_model

from koa_shared.contracts import Finding, Severity
from koa_shared.fits import Value, clean
from koa_shared.instruments import DATA, Data, Instrument, InstrumentError, RuleCall, explain

from .frame import Effect, Extra, Frame, Note, Set

Function = Callable[..., Iterable[Effect]]
F = TypeVar("F", bound=Function)
NULL = "null"  # what the archive writes for no value (facts 3.3)
COMMENTS = tomllib.loads((DATA / "comments.toml").read_text())
HUGE = 2**63  # no whole number of a frame is so large; its digits may not fit a card
LONGEST = 68  # characters of a text value in one card (FITS Standard 4.2.1)
RULES: dict[str, tuple[Function, type[Data]]] = {}  # by name, with the model of its parameters


def _known(part: str) -> AfterValidator:
    def check(name: str, info: ValidationInfo) -> str:
        if name not in getattr(info.context, part):
            raise ValueError(f"{part} hold no {name!r}")
        return name

    return AfterValidator(check)


# Parameters: the names of one of the instrument's tables, of some of its choices.
Table = Annotated[str, _known("tables")]
Choices = tuple[Annotated[str, _known("choices")], ...]


def rule(function: F) -> F:
    """Register a rule by the function's name; what it takes by keyword are the parameters."""
    spec, name = inspect.getfullargspec(function), function.__name__
    defaults = spec.kwonlydefaults or {}
    fields: Any = {k: (spec.annotations[k], defaults.get(k, ...)) for k in spec.kwonlyargs}
    RULES[name] = function, create_model(name, __base__=Data, **fields)
    return function


def _bound(call: RuleCall, instrument: Instrument) -> Function:
    function, parameters = RULES[call.rule]
    return partial(function, **dict(parameters.model_validate(call.params, context=instrument)))


def check_rules(instruments: Mapping[str, Instrument]) -> None:
    """Raise InstrumentError for a rule that is unknown or whose parameters are wrong."""
    for instrument in instruments.values():
        for number, call in enumerate(instrument.rules, 1):
            where = f"{instrument.name}.toml: rule {number}, {call.rule!r}"
            try:
                _bound(call, instrument)
            except KeyError as error:
                raise InstrumentError(f"{where}, is unknown") from error
            except ValidationError as error:
                raise InstrumentError(f"{where}:\n{explain(error)}") from error


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
    outcome = Outcome()
    outcome.take(frame, "identity", frame.identity.effects)
    for call in calls:
        effects: Iterable[Effect] = ()
        try:
            if frame.holds(call.when):
                effects = tuple(_bound(call, frame.instrument)(frame))
        except Exception as error:  # noqa: BLE001 (the next ones run all the same)
            severity = Severity.ERROR if call.critical else Severity.WARNING
            text = f"{type(error).__name__}: {error}"[:500]
            effects = (Note("RULE_CRASHED", text, severity),)
        outcome.take(frame, call.rule, effects)
    return outcome


def card_value(value: Value) -> Value:
    """Return a value that fits one card: no NaN, ASCII only, 68 characters."""
    if isinstance(value, float):
        return value if math.isfinite(value) else NULL
    if not isinstance(value, str):
        return NULL if value is None or abs(value) >= HUGE else value
    text = str(clean(value)).encode("ascii", "xmlcharrefreplace").decode()
    text = "".join(c if c.isprintable() else " " for c in text)[:LONGEST]
    while len(text) + text.count("'") > LONGEST:  # which are doubled in a card
        text = text[:-1]
    return text
