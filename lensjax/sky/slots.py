"""The slots of a picture for galaxies, swirls and stars: each has as many, and one that is not used
has no flux.

Angles in arcsec, fluxes in survey units. The last axis of all arrays is that of pictures, n.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import i0e

from lensjax.sky.lensing import Galaxies
from lensjax.sky.population import Array


class Swirls(NamedTuple):
    """Discs with arms, rings and tails, a slot each: flux (slot, band, n), the rest (slot, n).

    Light falls off as exp(-R / width) from the centre (is_ring 0), or as a Gaussian of sigma
    `width` about radius `ring` (is_ring 1). Along the angle it is `smooth` plus lobes:
    exp(sharpness (cos(lobes (theta - winding ln R) - phase) - 1)). `area` is the integral of that.
    """

    flux: Any
    x: Any
    y: Any
    axis_ratio: Any
    angle: Any
    is_ring: Any
    ring: Any
    width: Any
    smooth: Any
    sharpness: Any
    lobes: Any
    winding: Any
    phase: Any
    area: Any


class Stars(NamedTuple):
    """Points: flux (slot, band, n), position (slot, n)."""

    flux: Any
    x: Any
    y: Any


def slot(kind: Any, flux: Array, **shape: Array | float) -> Any:
    """Returns one slot of a kind, flux (band, n), the rest numbers or (n,)."""
    filled = {name: np.broadcast_to(value, flux.shape[1:])[None] for name, value in shape.items()}
    return kind(flux=flux[None], **filled)


def galaxy(
    flux: Array, x: Array | float, y: Array | float, axis_ratio: Array | float,
    angle: Array | float, radius: Array | float, n_sersic: Array | float,
) -> Galaxies:  # fmt: skip
    """Returns one galaxy as a slot."""
    return slot(
        Galaxies, flux, x=x, y=y, axis_ratio=axis_ratio, angle=angle, radius=radius,
        n_sersic=n_sersic,
    )  # fmt: skip


def swirl(flux: Array, **given: Array | float) -> Swirls:
    """Returns one swirl as a slot; what is not given is round, smooth and centred."""
    shape: dict[str, Any] = dict(
        x=0.0, y=0.0, axis_ratio=1.0, angle=0.0, is_ring=0.0, ring=1.0, width=1.0, smooth=1.0,
        sharpness=0.0, lobes=1.0, winding=0.0, phase=0.0,
    )  # fmt: skip
    shape |= given
    ring_area = (2 * np.pi) ** 1.5 * shape["ring"] * shape["width"]
    area = np.where(shape["is_ring"] == 1, ring_area, 2 * np.pi * shape["width"] ** 2)
    mean = shape["smooth"] + (1 - shape["smooth"]) * i0e(shape["sharpness"])
    return slot(Swirls, flux, **shape, area=area * shape["axis_ratio"] * mean)


def dark(kind: Any, slots: int, bands: int, count: int) -> Any:
    """Returns so many slots of a kind without flux, in `count` pictures; what else they hold is
    ones, so that their profiles are zero, never NaN."""
    of_bands = np.zeros((slots, bands, count))
    return kind(of_bands, *(np.ones((slots, count)) for _ in kind._fields[1:]))


def joined(*slots: Any) -> Any:
    """Returns all slots one after the other."""
    return type(slots[0])(*(np.concatenate(values) for values in zip(*slots, strict=True)))


def lit_first(slots: Any) -> Any:
    """Returns the slots of each picture, those without flux last."""
    order = np.argsort(slots.flux.sum(axis=1) <= 0, axis=0, kind="stable")
    return type(slots)(
        *(np.take_along_axis(v, order if v.ndim == 2 else order[:, None], axis=0) for v in slots)
    )
