"""Binary rasters: figures drawn pixel by pixel from whole numbers, cut into patches, and shown as text.

A pixel is set if its centre is in the figure or on its border. Corners of figures are at centres of pixels, so that a
convex polygon is the convex hull of its set pixels, and the raster determines the figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A character shows two pixels, one above the other: none is set, the upper, the lower, or both.
_CHARACTERS = ".',#"


def fill_polygons(corners: np.ndarray, side: int) -> np.ndarray:
    """Returns rasters of convex polygons, bool [N, side, side], rows from the top.

    Args:
      corners: (column, row) of every corner, in either sense of rotation, int [N, C, 2]; successive corners may be
        equal.
      side: side of the raster, in pixels; below 100.
    """
    places = np.arange(side, dtype=np.int16)
    corners = corners.astype(np.int16)
    after = np.roll(corners, -1, axis=1)
    sense = np.sign(twice_area(corners)).astype(np.int16)
    is_inside = np.ones((corners.shape[0], side, side), bool)
    for (x, y), (next_x, next_y) in zip(
        corners.transpose(1, 2, 0)[..., None], after.transpose(1, 2, 0)[..., None], strict=True
    ):
        # The cross product of an edge and the vector to a pixel is a function of row minus a function of column.
        by_row = sense[:, None] * (next_x - x) * (places - y)
        by_column = sense[:, None] * (next_y - y) * (places - x)
        is_inside &= by_row[:, :, None] >= by_column[:, None, :]
    return is_inside


def fill_discs(centres: np.ndarray, radii: np.ndarray, side: int) -> np.ndarray:
    """Returns rasters of discs, bool [N, side, side], rows from the top.

    Args:
      centres: (column, row) of every centre, int [N, 2].
      radii: radius of every disc, int [N].
      side: side of the raster, in pixels; below 100.
    """
    squares = (np.arange(side) - centres[:, :, None]) ** 2
    return squares[:, 1, :, None] + squares[:, 0, None, :] <= (radii**2)[:, None, None]


def twice_area(corners: np.ndarray) -> np.ndarray:
    """Returns twice the signed area of polygons with corners [N, C, 2], int [N]; its sign is the sense of rotation."""
    x, y = corners[..., 0].astype(np.int64), corners[..., 1].astype(np.int64)
    return np.sum(x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1), axis=1)


def to_patches(rasters: np.ndarray, patch_side: int) -> np.ndarray:
    """Returns the patches of rasters, [N, side, side], in row-major order; bit k of a patch is its k-th pixel."""
    num, side, _ = rasters.shape
    across = side // patch_side
    split = rasters.reshape(num, across, patch_side, across, patch_side).swapaxes(2, 3)
    return split.reshape(num, across**2, patch_side**2) @ (1 << np.arange(patch_side**2))


def to_text(patches: Sequence[int], patch_side: int) -> str:
    """Returns a square raster as text; a character is two pixels: `'` the upper, `,` the lower, `#` both, `.` none."""
    across = round(len(patches) ** 0.5)
    bits = np.asarray(patches)[:, None] >> np.arange(patch_side**2) & 1
    pixels = bits.reshape(across, across, patch_side, patch_side).swapaxes(1, 2).reshape(-1, across * patch_side)
    return "\n".join(
        "".join(_CHARACTERS[place] for place in line) for line in (pixels[::2] + 2 * pixels[1::2]).tolist()
    )
