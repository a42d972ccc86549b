"""Where the stage infer leaves the renderings of a frame, below its folder of files."""

from __future__ import annotations

from pathlib import Path

BACKGROUND = "background"


def frame_file(files: Path, sample_id: str) -> Path:
    """The whole frame, RGB."""
    return files / "frames" / f"{sample_id}.png"


def layer_file(files: Path, layer: str, sample_id: str) -> Path:
    """One layer of the frame, an object's or BACKGROUND, RGBA with colours not multiplied by opacity."""
    return files / "layers" / layer / f"{sample_id}.png"


def edit_file(files: Path, edit: str, layer: str, sample_id: str) -> Path:
    """The frame after an edit of one object ("remove" or "paint"), RGB."""
    return files / "edits" / f"{edit}-{layer}" / f"{sample_id}.png"


def atlas_file(files: Path, layer: str) -> Path:
    """The picture that a layer's plane carries, RGBA; of no single frame, it is written with the first."""
    return files / "atlases" / f"{layer}.png"
