"""``summary.json`` of a run: the fields that a report uses, checked when the file is read."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .damaged import Damaged, reading
from .printable import printable

MOST = 1e18
"""The largest plausible cost [seconds or bytes]."""

BOUNDS = frozenset({"greater_than", "greater_than_equal", "less_than_equal"})


Text = Annotated[str, AfterValidator(printable)]
# NaN and infinities, which JSON lacks, are written as text.
Number = Annotated[float, BeforeValidator(lambda it: float(it) if it in ("nan", "inf", "-inf") else it)]
Cost = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Fields(BaseModel):
    """Fields of strictly checked types; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


Content = TypeVar("Content", bound=Fields)


class Described(Fields):
    """Description of the model and its data."""

    model: Text | None = None
    data: Text | None = None
    parameters: Count | None = None
    batch_size: Any = None
    seed: int | None = None


class EstimatorFields(Fields):
    """One VJP's estimator: class, keep rate, and all its other fields."""

    model_config = ConfigDict(extra="allow")

    name: Text
    keep: Rate | None = None


class Estimators(Fields):
    """The estimators of both VJPs, and the callback's choice of layers, its preset and its lean mode."""

    weight_vjp: EstimatorFields | None = None
    input_vjp: EstimatorFields | None = None
    layers: Any = None
    preset: Text | None = None
    lean: Any = None
    bits: Any = None


class Progress(Fields):
    """Progress of the training."""

    epochs: Count | None = None


class Costs(Fields):
    """Costs of the training; ``None`` where not measured."""

    step_seconds: Cost | None = None
    step_seconds_q25: Cost | None = None
    step_seconds_q75: Cost | None = None
    steps_timed: Cost | None = None
    waiting_threads: Cost | None = None
    held_bytes: Cost | None = None
    peak_bytes: Cost | None = None
    start_bytes: Cost | None = None
    peak_source: Text | None = None


class Summary(Fields):
    """The summary of one run, as :class:`randbp.callbacks.CostMonitor` writes it."""

    format: Literal[1]
    status: Text
    error: Text | None = None
    started: datetime | None = None
    run: Described | None = None
    estimators: Estimators | None = None
    progress: Progress = Progress()
    cost: Costs = Costs()
    metrics: dict[Text, Number] = {}
    environment: dict[Text, Any] = {}
    fit_seconds: Cost | None = None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "finished"

    @property
    def trained(self) -> bool:
        """Whether this is a training run, unlike the evaluation of a checkpoint, which finishes without any costs."""
        return not self.finished or bool(self.cost.model_fields_set)


def read_summary(path: Path) -> Summary:
    """Read a summary; a field that is missing or cannot be meant raises :class:`Damaged`."""
    summary = read_json(path, Summary)
    if summary.finished and summary.trained and summary.run is None:
        raise Damaged(path, "run: missing")
    return summary


def read_json(path: Path, fields: type[Content]) -> Content:
    """Read a file with the fields of a class; whatever is wrong with it raises :class:`Damaged`."""
    with reading(path, "JSON"):
        try:
            return fields.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise Damaged(path, what_is_wrong(error)) from error


def what_is_wrong(error: ValidationError) -> str:
    """The first error as key, value and what is allowed.

    Example:
        >>> try:
        ...     _ = Costs.model_validate_json('{"held_bytes": -5}')
        ... except ValidationError as error:
        ...     print(what_is_wrong(error))
        held_bytes=-5: expected a value greater than or equal to 0
    """
    first = error.errors(include_url=False)[0]
    key, kind = ".".join(str(part) for part in first["loc"]), first["type"]
    if kind == "json_invalid":
        return printable(f"not valid JSON: {first['msg'].partition(': ')[2]}")
    if kind == "missing":
        return printable(f"{key}: missing")
    if kind == "value_error":  # of fields together; none of them is wrong by itself
        return printable(first["msg"].removeprefix("Value error, "))
    allowed = first["msg"].replace("Input should be ", "expected a value " if kind in BOUNDS else "expected ")
    value = repr(first["input"])
    value = value if len(value) <= 40 else f"{value[:39]}…"
    return printable(f"{key}={value}: {allowed}" if key else f"{value}: {allowed}")
