"""A trained network as an ONNX file: exported, compared with torch on real samples, and applied by onnxruntime.

An ONNX file holds a graph of named operators and its weights, and no code: https://onnx.ai.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manyscope.errors import CheckpointError, ManyscopeError, MissingDependencyError
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from manyscope.tables.predictions import Objects

OPSET = 18  # the oldest that torch writes without converting: the most programs read it
TOLERANCE = 1e-4
_SAMPLES = "samples"  # name of the first axis of everything
_LARGEST = 2**31 - 1  # bytes of a protobuf message
_PREFIX = "manyscope."


@dataclass(frozen=True)
class Exportable:
    """A model as a function of tensors whose first axis counts the samples.

    Attributes:
        module: called with the inputs, in this order, it returns a tuple of the outputs, in this order.
        inputs: names of entries of a batch.
        outputs: names for what comes back.
        objects: what the predictions say, from a batch and from the outputs by name.
        about: what somebody who has only the file must know of its inputs, as plain JSON values.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    objects: Callable[[dict[str, Any], dict[str, Tensor]], Objects]
    about: Mapping[str, Any] = field(default_factory=dict)


class OnnxModel:
    """An ONNX file in onnxruntime, on the CPU, with as many threads as torch has.

    Attributes:
        metadata: what `export` wrote into the file.

    Raises:
        CheckpointError: the file is missing, or onnxruntime cannot read it.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, file: Path) -> None:
        runtime = _package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        # Threads that spin while they wait for each other multiply the CPU time on a shared machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.file = file
        try:
            # From memory: the file may be replaced by another process at any time.
            self._session = runtime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
        except FileNotFoundError as error:
            raise CheckpointError("the exported model is missing", place=file, remedy="export it again") from error
        except OSError:
            raise
        except Exception as error:  # onnxruntime raises types of its compiled part
            raise CheckpointError(
                f"not a model that onnxruntime can run ({_reason(error)})", place=file, remedy="export it again"
            ) from error
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        found = self._session.get_modelmeta().custom_metadata_map
        self.metadata = {k.removeprefix(_PREFIX): v for k, v in found.items() if k.startswith(_PREFIX)}

    def require(self, origin: Mapping[str, str]) -> None:
        """
        Raises:
            CheckpointError: the file says otherwise of where it comes from, as of other weights.
        """
        for key, wanted in origin.items():
            if self.metadata.get(key) != wanted:
                found = self.metadata.get(key, "nothing")
                raise CheckpointError(
                    f"holds another model: {key} is {_short(found)}",
                    place=self.file,
                    allowed=_short(wanted),
                    remedy="export it again",
                )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The outputs by name, of a batch with tensors under the names of the inputs."""
        given = {name: batch[name].numpy(force=True) for name in self._inputs}
        return {
            name: torch.from_numpy(values)
            for name, values in zip(self._outputs, self._session.run(self._outputs, given), strict=True)
        }


def export(
    what: Exportable,
    file: Path,
    batches: Sequence[Mapping[str, Any]],
    origin: Mapping[str, str],
    tolerance: float = TOLERANCE,
    opset: int = OPSET,
) -> dict[str, Any]:
    """Write a model whole, after onnx has checked it and onnxruntime has given what torch gives.

    Args:
        batches: of real samples; the sizes of all should differ. The first must have two samples or more.
        origin: where the model comes from; kept in the file, see `OnnxModel.require`.
        tolerance: largest allowed |onnxruntime - torch|, in units of the root mean square of torch's output.

    Returns:
        for each output its shape, the largest difference, the root mean square, and the former in units of the latter.

    Raises:
        ManyscopeError: the model cannot be expressed in ONNX for any number of samples, or the outputs differ.
            Nothing is written.
        MissingDependencyError: a package of the extra `onnx` is not installed.
    """
    onnx = _package("onnx")
    module = what.module.cpu().eval()
    proto = _converted(what, module, batches[0], opset, file)
    about = {"inputs": list(what.inputs), "outputs": list(what.outputs), **what.about}
    texts = {**origin, **{key: json.dumps(value) for key, value in about.items()}}
    onnx.helper.set_model_props(proto, {_PREFIX + key: value for key, value in texts.items()})
    if proto.ByteSize() > _LARGEST:
        raise ManyscopeError(f"the model has {proto.ByteSize()} bytes", place=file, allowed=f"{_LARGEST} in one file")
    with whole_file(file) as partial:
        partial.write_bytes(proto.SerializeToString(deterministic=True))
        try:
            onnx.checker.check_model(str(partial), full_check=True)
        except Exception as error:  # a class of its own for each part of the checker
            raise ManyscopeError(f"the exported model is not valid ({_reason(error)})", place=file) from error
        return _compared(what, module, OnnxModel(partial), batches, tolerance, file)


def apply(what: Exportable, model: OnnxModel, batches: Iterable[dict[str, Any]]) -> Iterator[Objects]:
    """The objects of each batch, its outputs from onnxruntime."""
    for batch in batches:
        with torch.inference_mode():
            found = what.objects(batch, model(batch))
        yield found


def _converted(what: Exportable, module: nn.Module, batch: Mapping[str, Any], opset: int, file: Path) -> Any:
    """The model in ONNX, with a free number of samples and without a word of the machine that exported it."""
    _package("onnxscript")
    inputs = tuple(batch[name].cpu() for name in what.inputs)
    free = torch.export.Dim(_SAMPLES)
    try:
        with _quiet():
            program = torch.onnx.export(
                module, inputs, dynamo=True, verbose=False, opset_version=opset, input_names=what.inputs,
                output_names=what.outputs, dynamic_shapes=tuple({0: free} for _ in inputs),
            )  # fmt: skip
    except ManyscopeError:
        raise
    except Exception as error:  # whatever the network's code or torch's tracing and conversion stumble over
        raise ManyscopeError(
            f"the model cannot be exported ({_reason(error)})",
            place=file,
            remedy="keep to real tensors and operators of torch in forward and decode, without decisions that depend"
            " on values",
        ) from error
    assert program is not None
    proto = program.model_proto
    for entry in proto.graph.input:
        if not entry.type.tensor_type.shape.dim[0].dim_param:
            raise ManyscopeError(
                f"the model fixes the number of samples: input {entry.name!r} was exported for {len(inputs[0])} only",
                place=file,
                remedy="take it from tensor.shape[0], since len(tensor) is a constant while exporting",
            )
    found = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if found != opset:
        raise ManyscopeError(f"the model was exported with opset {found}, not {opset}", place="--opset")
    # Traces of where in whose files each operator was written.
    for part in (proto.graph, *proto.functions):
        for entry in (part, *part.node, *part.value_info):
            del entry.metadata_props[:]
            entry.doc_string = ""
    return proto


def _compared(
    what: Exportable,
    module: nn.Module,
    model: OnnxModel,
    batches: Sequence[Mapping[str, Any]],
    tolerance: float,
    file: Path,
) -> dict[str, Any]:
    """How far the outputs of onnxruntime are from those of torch, over all batches."""
    ours: dict[str, list[Tensor]] = {name: [] for name in what.outputs}
    theirs: dict[str, list[Tensor]] = {name: [] for name in what.outputs}
    for batch in batches:
        with torch.inference_mode():
            expected = module(*(batch[name].cpu() for name in what.inputs))
        try:
            found = model(batch)
        except Exception as error:  # onnxruntime raises types of its compiled part
            raise ManyscopeError(f"onnxruntime cannot run the exported model ({_reason(error)})", place=file) from error
        for name, values in zip(what.outputs, expected, strict=True):
            if found[name].shape != values.shape:
                shapes = f"{tuple(found[name].shape)} from onnxruntime and {tuple(values.shape)} from torch"
                raise ManyscopeError(f"output {name!r} has shape {shapes}; nothing was written", place=file)
            ours[name].append(found[name].double().flatten())
            theirs[name].append(values.double().flatten())
    report = {}
    for name in what.outputs:
        torch_gave = torch.cat(theirs[name])
        largest = float((torch.cat(ours[name]) - torch_gave).abs().max())
        scale = float(torch_gave.square().mean().sqrt())
        relative = largest / scale if scale else largest
        if not relative <= tolerance:  # also where a number is missing
            raise ManyscopeError(
                f"output {name!r} of onnxruntime differs from torch's by {largest:.3g}, {relative:.3g} of its root mean"
                f" square {scale:.3g}; nothing was written",
                place=file,
                allowed=f"{tolerance:g}",
                remedy="report the model, or allow more by --tolerance if you know why",
            )
        shape = [_SAMPLES, *expected[what.outputs.index(name)].shape[1:]]
        report[name] = {"shape": shape, "largest_difference": largest, "root_mean_square": scale, "relative": relative}
    return report


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of its own work."""
    speakers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels = [speaker.level for speaker in speakers]
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        for speaker in speakers:
            speaker.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for speaker, level in zip(speakers, levels, strict=True):
                speaker.setLevel(level)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"package {name!r} is not installed", place="ONNX", remedy="pip install 'manyscope[onnx]'"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


def _short(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:12]}…"
