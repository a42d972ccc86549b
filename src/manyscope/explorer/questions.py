"""What the server is asked, and what it answers, as JSON; the routes say in which question each belongs."""

from __future__ import annotations

from collections.abc import Sized
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, model_validator

from manyscope.explorer.store import Among, Between, Containing, Filter
from manyscope.tables.metrics import Metric

MOST_CORNERS = 10_000  # of a lasso
MOST_RECORDS = 10_000
MOST_VALUES = 2_000_000  # of all records of one answer
MOST_NAMES = 100_000
MOST_LETTERS = 1_000_000  # of a name, of a value, of a part of one
MOST_SAID = 10_000  # letters of a text that a model reads


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _bounded(text: str) -> str:
    if len(text) > MOST_LETTERS:
        raise ValueError(f"a text has {len(text):,} letters; at most {MOST_LETTERS:,} are read")
    return text


def _few(values: _Sized) -> _Sized:
    if len(values) > MOST_NAMES:
        raise ValueError(f"there are {len(values):,} of these; at most {MOST_NAMES:,} are read")
    return values


_Sized = TypeVar("_Sized", bound=Sized)
# These bounds are not in the description: whoever tests by it would send megabytes to go beyond them.
Few = AfterValidator(_few)
Name = Annotated[str, AfterValidator(_bounded)]
Corner = tuple[FiniteFloat, FiniteFloat]


class Problem(BaseModel):
    detail: str = Field(description="One sentence.")


class RowsIn(_Model):
    """Some rows. In a list they keep their order."""

    form: Literal["list", "bits"] = Field(
        description="`list`: little-endian int32. `bits`: one for each object, the highest of a byte first."
    )
    data: str = Field(description="Base64.")


class FilterIn(_Model):
    """`low` and `high` (both included, null is no bound), or `levels` (null for a missing value), or `part`."""

    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    levels: Annotated[list[Name | None], Few] | None = None
    part: Name | None = None

    @model_validator(mode="after")
    def one_kind(self) -> FilterIn:
        given = [self.levels is not None, self.part is not None, bool(self.model_fields_set & {"low", "high"})]
        if sum(given) != 1:
            raise ValueError("a filter has either low and high, or levels, or part")
        return self

    def meant(self) -> Filter:
        if self.levels is not None:
            return Among(self.levels)
        return Containing(self.part) if self.part is not None else Between(self.low, self.high)


Filters = Annotated[dict[Name, FilterIn], Few]


class FindIn(_Model):
    filters: Filters


class WithinIn(_Model):
    """A box of two opposite corners, or a lasso."""

    kind: Literal["box", "lasso"]
    corners: tuple[Corner, Corner] | None = None
    points: Annotated[list[Corner], Field(min_length=1, max_length=MOST_CORNERS)] | None = None
    camera: Annotated[list[FiniteFloat], Field(min_length=16, max_length=16)] | None = Field(
        None, description="Column-major, from the map to clip space; the shape is then in x/w and y/w."
    )

    @model_validator(mode="after")
    def one_kind(self) -> WithinIn:
        if (self.kind == "box") != (self.corners is not None) or (self.kind == "lasso") != (self.points is not None):
            raise ValueError("a box has corners, a lasso has points")
        return self


class PointsIn(_Model):
    view: tuple[Corner, Corner] | None = Field(None, description="Ends of x and of y; null is the whole map.")
    colour: Name | None = Field(None, description="A column of numbers or of a category.")
    size: Name | None = Field(None, description="A column of numbers or of a category.")
    filters: Filters = Field(default_factory=dict, description="Objects that pass come before all others.")
    always: Annotated[list[int], Field(max_length=MOST_RECORDS)] = Field(
        default_factory=list, description="Rows that are drawn in any case."
    )


class RecordsIn(_Model):
    rows: Annotated[list[int], Field(max_length=MOST_RECORDS)]
    names: Annotated[list[Name], Few]

    @model_validator(mode="after")
    def not_too_many(self) -> RecordsIn:
        if len(self.rows) * len(self.names) > MOST_VALUES:
            raise ValueError(f"{len(self.rows)} x {len(self.names)} values; at most {MOST_VALUES:,} are told at once")
        return self


class SortedIn(_Model):
    rows: RowsIn | None = Field(None, description="Null is all.")
    name: Name = Field(description='A column, or "object_id".')
    descending: bool = False


class HistogramIn(_Model):
    name: Name
    rows: RowsIn | None = Field(None, description="Null is all.")


class CsvIn(_Model):
    rows: RowsIn


class TextIn(_Model):
    text: Annotated[str, StringConstraints(min_length=1, max_length=MOST_SAID)]


class Packed(BaseModel):
    dtype: Literal["float32", "float64", "int32", "int16"]
    data: str = Field(description="Base64 of the little-endian values.")


class ExperimentsOut(BaseModel):
    experiments: list[str]


class ColumnOut(BaseModel):
    """A column; what only some kinds have is left out of the others."""

    model_config = ConfigDict(extra="allow")

    name: str
    kind: Literal["number", "category", "text"]
    missing: int


class SearchOut(BaseModel):
    text: bool
    image: bool


class AboutOut(BaseModel):
    """Everything but the objects themselves; `version` is to be given with each question."""

    experiment: str
    scope: str
    title: str
    objects: int
    axes: int
    extent: list[tuple[float, float]]
    columns: list[ColumnOut]
    card: list[str]
    bars: int = Field(description="Of a histogram of numbers.")
    notes: list[str]
    neighbours: int
    version: str
    search: SearchOut
    all: bool
    pictures: bool
    experiments: list[str]
    records_at_once: int = Field(description="As many `records` are answered at once.")


class PointsOut(BaseModel):
    rows: Packed
    axes: list[Packed]
    colour: Packed | None
    size: Packed | None


class RecordOut(BaseModel):
    row: int
    id: str
    values: list[float | int | str | None] = Field(description="A number that JSON lacks is a text: Infinity.")


class HistogramOut(BaseModel):
    low: float | None = None
    high: float | None = None
    all: list[int]
    chosen: list[int]
    missing: int


class NeighbourOut(BaseModel):
    row: int
    id: str
    distance: float


class RowOut(BaseModel):
    row: int | None


class CurveOut(BaseModel):
    name: str
    step: int
    value: float


class FigureOut(BaseModel):
    name: str
    caption: str
    address: str = Field(description="Relative to the page.")


class TrainingOut(BaseModel):
    metrics: list[Metric]
    headline: str | None
    curves: list[CurveOut]
    figures: list[FigureOut]
