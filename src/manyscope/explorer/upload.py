"""A picture that a user gives, checked before any scope decodes it."""

from __future__ import annotations

from pathlib import Path

from fastapi import HTTPException

MOST_PIXELS = 2**26
"""Of an uploaded picture when it is decoded: a panorama of 8192 x 4096 has half of it."""
_READ = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "GIF": ".gif"}
_FOUND = {**_READ, "MPO": ".jpg"}  # a photograph with further, smaller ones behind it, which nobody reads


def checked_picture(file: Path) -> Path:
    """The file under a name of its kind, if it is one picture of a size that can be decoded.

    A TIFF is written anew: its tags may tell other programs of many more pictures than there are bytes for, and these
    would fill the memory.

    Raises:
        HTTPException: it is not.
    """
    from PIL import Image

    try:
        with Image.open(file, formats=list(_READ)) as image:
            kind, (width, height) = str(image.format), image.size
            # Of all kinds this looks no further than to the second frame; to count them would take as long as a file
            # with a million of them asks for.
            if kind != "MPO" and getattr(image, "is_animated", False):
                raise HTTPException(422, "the file holds several pictures; give one of them")
            if width * height > MOST_PIXELS:
                raise HTTPException(422, f"the picture has {width} x {height} pixels; at most {MOST_PIXELS:,} are read")
            named = file.with_suffix(_FOUND[kind])  # a scope may tell kinds of files by their names
            if kind == "TIFF":
                image.copy().save(named, "TIFF")  # a copy has the pixels and no tags
                return named
    except (OSError, SyntaxError, ValueError, KeyError, Image.DecompressionBombError) as error:
        raise HTTPException(422, "this is no picture that can be read") from error
    return file.rename(named)
