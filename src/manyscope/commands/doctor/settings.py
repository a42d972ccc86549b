"""Checks of the settings: the workflow file, the site file, the folders and the server that it names."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from manyscope.commands.doctor.finding import Finding, Surroundings, first_line
from manyscope.commands.doctor.places import MANIFEST, can_write, has_manifest, missing_weights
from manyscope.settings import Site

SITE_TEMPLATE = Path("config/local.template.yaml")
_TIMEOUT_S = 5.0


def settings(surroundings: Surroundings) -> Finding:
    """Are the workflow file and its experiments valid?"""
    if surroundings.config is None:
        count = len(surroundings.problems)
        what = f"{surroundings.config_file}: {count} problem(s) in the settings, the first: {surroundings.problems[0]}"
        return Finding("fail", what, "run: manyscope validate")
    names = ", ".join(surroundings.config.experiments)
    return Finding("ok", f"{surroundings.config_file}: {len(surroundings.config.experiments)} experiment(s): {names}")


def site(surroundings: Surroundings) -> Finding:
    """Has this computer a file of its own paths and accounts?"""
    file = surroundings.site_file
    if file.is_file():
        return Finding("ok", f"{file} is there")
    return Finding("warn", f"{file} is not there: default folders are used", f"run: cp {SITE_TEMPLATE} {file}")


def weights(surroundings: Surroundings) -> Finding:
    """Are the pretrained weights there, or can they be kept where they will be?"""
    folder, named = surroundings.site.weights_path, surroundings.weights
    what, remedy = f"weights_path {folder}", f"change its rights, or set weights_path in {surroundings.site_file}"
    if named and (reason := missing_weights(named)):
        fill = f"put the weights there, or take weights_path out of {surroundings.site_file} where none are needed"
        if has_manifest(folder):
            fill = f"run `manyscope download --experiment NAME`, or delete what is not needed from {folder / MANIFEST}"
        return Finding("fail", f"missing weights: {what} {reason}", fill)
    if folder.is_dir():
        if can_write(folder):
            return Finding("ok", f"{what} is there")
        return Finding("warn", f"{what} is read-only: weights that are not in it cannot be fetched", remedy)
    if can_write(folder):
        return Finding("ok", f"{what} is not there yet and will be made when it is needed")
    return Finding("fail", f"{what} is not there and cannot be made", remedy)


def scratch(surroundings: Surroundings) -> Finding:
    """Can large temporary files be written?"""
    folder = surroundings.site.scratch_path
    if can_write(folder):
        return Finding("ok", f"scratch_path {folder} can be written")
    return Finding(
        "fail",
        f"scratch_path {folder} cannot be written",
        f"write in {surroundings.site_file} a folder that can be, for example: scratch_path: {Site().scratch_path}",
    )


def tracking(surroundings: Surroundings) -> Finding:
    """Can MLflow record the trainings?"""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or surroundings.site.tracking_uri
    remedy = "curves are in train/history.parquet alone"
    if uri and uri.startswith(("http://", "https://")):
        shown, reason = re.sub(r"//[^/@]*@", "//", uri), _unreachable(f"{uri.rstrip('/')}/health")
        if reason:
            return Finding(
                "warn", f"MLflow server {shown} does not answer ({reason})", f"start it; until then {remedy}"
            )
        return Finding("ok", f"MLflow server {shown} answers")
    # Three slashes before a relative path, four before an absolute one.
    path = Path(re.sub(r"^sqlite:///|^file:(//)?", "", uri)) if uri else surroundings.results / "mlflow.db"
    if "://" in str(uri) and not str(uri).startswith(("sqlite:", "file:")):
        return Finding("ok", f"MLflow uses a database of kind {str(uri).partition(':')[0]}, which is not looked into")
    if can_write(path):
        return Finding("ok", f"MLflow writes {path}")
    return Finding(
        "warn", f"MLflow cannot write {path}", f"change its rights, or set tracking_uri; until then {remedy}"
    )


def _unreachable(address: str) -> str:
    """Why nobody answers at an HTTP address; empty if somebody does."""
    try:
        urllib.request.urlopen(address, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return f"status {error.code}" if error.code >= 500 else ""
    except (OSError, ValueError) as error:
        return first_line(error)
    return ""
