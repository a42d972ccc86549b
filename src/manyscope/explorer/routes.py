"""The questions to the server: what each address answers."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.security import APIKeyCookie, HTTPBearer

from manyscope.errors import ManyscopeError
from manyscope.explorer.payload import packed
from manyscope.explorer.questions import (
    MOST_RECORDS,
    AboutOut,
    CsvIn,
    ExperimentsOut,
    FigureOut,
    FilterIn,
    FindIn,
    HistogramIn,
    HistogramOut,
    NeighbourOut,
    Packed,
    PointsIn,
    PointsOut,
    Problem,
    RecordOut,
    RecordsIn,
    RowOut,
    RowsIn,
    SearchOut,
    SortedIn,
    TextIn,
    TrainingOut,
    WithinIn,
)
from manyscope.explorer.shelf import ChangedError, Shelf, View
from manyscope.explorer.store import Filter, Shape, Store
from manyscope.explorer.upload import checked_picture
from manyscope.log import logger

MOST_NEIGHBOURS = 1_000


def _asked(request: Request, name: str, version: Annotated[str, Query(description="As `about` says it.")]) -> View:
    shelf: Shelf = request.app.state.shelf
    return shelf.at(name, version)


Asked = Annotated[View, Depends(_asked)]
K = Annotated[int, Query(ge=1, le=MOST_NEIGHBOURS)]


def page_routes(shelf: Shelf) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    # The page is several megabytes, and rendered when it is first asked for: not in the loop of all answers.
    @router.get("/")
    def page() -> HTMLResponse:
        html, policy = shelf.page
        return HTMLResponse(html, headers={"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"})

    @router.get("/favicon.ico", status_code=204)
    def icon() -> None:
        """Browsers ask for it; there is none."""

    return router


def _responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    texts = {
        401: "The token is missing or wrong.",
        403: "Another site asks, or the server is asked under a name that it does not go by.",
        404: "There is no such experiment, object or figure.",
        409: "The results have changed: ask `about` again.",
        413: "The body is too large.",
        422: "A value is missing or wrong.",
    }
    return {code: {"model": Problem, "description": texts[code]} for code in codes}


_OCTETS: dict[str, Any] = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "description": "Rows as little-endian int32.",
}


def _octets(rows: np.ndarray) -> Response:
    return Response(rows.astype("<i4").tobytes(), media_type="application/octet-stream")


def data_routes(shelf: Shelf, cookie: str) -> APIRouter:
    # Only for the description: the guard has looked before any route is found.
    schemes = [
        Security(APIKeyCookie(name=cookie, auto_error=False)),
        Security(HTTPBearer(auto_error=False)),
    ]
    router = APIRouter(prefix="/api", dependencies=schemes)
    data = APIRouter(prefix="/experiments/{name}", responses=_responses(401, 403, 404, 409, 413, 422))

    @router.get("/experiments", responses=_responses(401, 403, 413))
    def experiments() -> ExperimentsOut:
        """The experiments that are served."""
        return ExperimentsOut(experiments=shelf.names)

    @data.get("/about", response_model_exclude_unset=True)
    def about(name: str) -> AboutOut:
        """What there is to see of an experiment; its results are read again if they have changed."""
        view = shelf.latest(name)
        return AboutOut(
            **view.store.about,
            notes=list(view.notes),
            neighbours=min(view.neighbours, view.store.objects - 1),
            version=view.version,
            search=SearchOut(text="text" in view.queries, image="image" in view.queries),
            all=view.store.draws_all,
            pictures=view.pictures,
            experiments=shelf.names,
            records_at_once=MOST_RECORDS,
        )

    @data.post("/find", response_class=Response, responses={200: _OCTETS})
    def find(view: Asked, question: FindIn) -> Response:
        """Rows of the objects that pass every filter; the name "object_id" filters by id."""
        return _octets(view.store.find(_meant(question.filters)))

    @data.post("/within", response_class=Response, responses={200: _OCTETS})
    def within(view: Asked, question: WithinIn) -> Response:
        """Rows of the objects inside a shape, of a lasso by the even-odd rule."""
        outline = question.corners or question.points or ()
        return _octets(view.store.within(Shape(question.kind, outline, question.camera)))

    @data.post("/points")
    def points(view: Asked, question: PointsIn) -> PointsOut:
        """The objects to draw, as many as can be drawn at once, the same ones whenever the same part is seen."""
        found = view.store.points(
            question.view,
            question.colour,
            question.size,
            _meant(question.filters),
            _row_array(question.always),
        )
        pack: Callable[[np.ndarray], Packed] = lambda values: Packed(**packed(values))  # noqa: E731
        return PointsOut(
            rows=pack(found.rows),
            axes=[pack(axis) for axis in found.axes],
            colour=None if found.colour is None else pack(found.colour),
            size=None if found.size is None else pack(found.size),
        )

    @data.post("/records")
    def records(view: Asked, question: RecordsIn) -> list[RecordOut]:
        """Ids and values of some objects, in the order in which they are asked for."""
        found = view.store.records(_row_array(question.rows), question.names)
        return [RecordOut(**{**record, "values": [_in_json(v) for v in record["values"]]}) for record in found]

    @data.post("/sorted", response_class=Response, responses={200: {**_OCTETS, "description": "The rows in order."}})
    def ordered(view: Asked, question: SortedIn) -> Response:
        """The same rows by a column; missing values last, equal ones by row."""
        rows = _decoded(question.rows, view.store)
        return _octets(view.store.sorted(rows, question.name, question.descending))

    @data.post("/histogram", response_model_exclude_unset=True)
    def histogram(view: Asked, question: HistogramIn) -> HistogramOut:
        """Counts of all objects and of some, for each bar from `low` to `high` or for each level."""
        return HistogramOut(**view.store.histogram(question.name, _decoded(question.rows, view.store)))

    @data.post(
        "/csv",
        response_class=Response,
        responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "The table."}},
    )
    def csv(view: Asked, question: CsvIn) -> StreamingResponse:
        """All that is known of some objects, in the order in which they are asked for."""
        rows = _decoded(question.rows, view.store)
        assert rows is not None
        return StreamingResponse(view.store.csv(rows), media_type="text/csv")

    @data.get("/row")
    def row(view: Asked, object_id: Annotated[str, Query(alias="id")]) -> RowOut:
        """The row of an object, null if there is none of that id."""
        return RowOut(row=view.store.row_of(object_id))

    @data.get("/neighbours/{row}")
    def neighbours(view: Asked, row: int, k: K = 10) -> list[NeighbourOut]:
        """The nearest others in latent space, as the index has them."""
        object_id = view.store.contents.object_ids[_existing(row, view.store)]
        return _near(view.nearest_to(object_id, k), view.store)

    @data.post("/search/text")
    def search_text(view: Asked, question: TextIn, k: K = 10) -> list[NeighbourOut]:
        """The objects nearest to what a text says, where the scope can."""
        _check_query(view, "text")
        return _near(_embedded(view, question.text, k), view.store)

    @data.post(
        "/search/image",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def search_image(view: Asked, request: Request, k: K = 10) -> list[NeighbourOut]:
        """The objects nearest to what a picture shows, where the scope can. The body is the picture's file."""
        _check_query(view, "image")
        with tempfile.TemporaryDirectory(prefix="manyscope-") as folder:
            file = Path(folder) / "upload"
            with file.open("wb") as out:
                async for chunk in request.stream():
                    out.write(chunk)
            return await run_in_threadpool(lambda: _near(_embedded(view, checked_picture(file), k), view.store))

    @data.get(
        "/pictures/{row}",
        response_class=Response,
        responses={
            200: {"content": {"image/webp": {}}, "description": "The picture."},
            204: {"description": "This object has no picture."},
        },
    )
    def picture(view: Asked, row: int) -> Response:
        """A small picture of an object."""
        row = _existing(row, view.store)
        try:
            found = view.picture(row) if view.pictures else None
        except ChangedError:
            raise
        except Exception as error:  # a scope's own files and libraries may be in any state
            logger.warning("no picture of object %r: %s", view.store.contents.object_ids[row], error)
            raise HTTPException(404, "the picture of this object cannot be drawn") from error
        return Response(status_code=204) if found is None else Response(found, media_type="image/webp")

    @data.get("/training")
    def training(name: str, view: Asked) -> TrainingOut | None:
        """What train and evaluate found; null if there is nothing."""
        found, version = view.training(), urlencode({"version": view.version})
        figures = [
            FigureOut(**figure, address=f"api/experiments/{name}/figures/{number}?{version}")
            for number, figure in enumerate(view.figures())
        ]
        if not (found["metrics"] or found["curves"] or figures):
            return None
        return TrainingOut(**{**found, "figures": figures})

    @data.get(
        "/figures/{number}",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}, "description": "The figure."}},
    )
    def figure(view: Asked, number: int) -> Response:
        """A figure, by its place in the list of `training`: no name from a request becomes a path."""
        listed = view.figures()
        found = view.figure(listed[number]["name"]) if 0 <= number < len(listed) else None
        if found is None:
            raise HTTPException(404, "there is no such figure")
        return Response(found, media_type="image/png")

    router.include_router(data)
    return router


def _meant(filters: Mapping[str, FilterIn]) -> dict[str, Filter]:
    return {name: wanted.meant() for name, wanted in filters.items()}


def _row_array(rows: Sequence[int]) -> np.ndarray:
    try:
        return np.asarray(rows, np.int32)
    except OverflowError as error:
        raise HTTPException(422, "a row is unknown") from error


def _decoded(rows: RowsIn | None, store: Store) -> np.ndarray | None:
    if rows is None:
        return None
    try:
        octets = base64.b64decode(rows.data, validate=True)
        if rows.form == "bits":
            return np.flatnonzero(np.unpackbits(np.frombuffer(octets, np.uint8))).astype(np.int32)
        decoded = np.frombuffer(octets, "<i4").astype(np.int32)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, "the rows are not what their form says, in base64") from error
    if len(decoded) > store.objects:
        raise HTTPException(422, f"{len(decoded)} rows of {store.objects} objects were given")
    return decoded


def _existing(row: int, store: Store) -> int:
    if not 0 <= row < store.objects:
        raise HTTPException(404, f"there is no object {row}: rows are 0 to {store.objects - 1}")
    return row


def _in_json(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _near(found: Iterable[tuple[str, float]], store: Store) -> list[NeighbourOut]:
    """Objects of which the map does not know are left out: an older index may hold such."""
    rows = ((store.row_of(object_id), object_id, distance) for object_id, distance in found)
    return [NeighbourOut(row=row, id=name, distance=distance) for row, name, distance in rows if row is not None]


def _check_query(view: View, kind: str) -> None:
    if kind not in view.queries:
        raise HTTPException(422, f"this experiment cannot be searched by {kind}")


def _embedded(view: View, query: Path | str, k: int) -> Iterable[tuple[str, float]]:
    try:
        return view.nearest(query, k)
    except (ManyscopeError, ChangedError):
        raise
    except Exception as error:  # what a model makes of something strange
        logger.warning("a query could not be embedded: %s: %s", type(error).__name__, error)
        raise HTTPException(422, f"the model cannot embed this ({type(error).__name__})") from error
