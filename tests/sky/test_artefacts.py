"""Artefacts change what they are named for."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lensjax.sky.artefacts import ARTEFACT_UNIFORMS, ARTEFACTS, with_artefact
from lensjax.sky.lenses import pictures_first
from lensjax.sky.survey import GROUND, observation_uniforms, observe

SMALL = replace(GROUND, size=32, artefact_fraction=0.6)


def test_each_is_what_it_is_called_and_comes_as_often_as_asked():
    uniform = jax.random.uniform(jax.random.key(0), (600, ARTEFACT_UNIFORMS))
    middle = observe(np.full((observation_uniforms(SMALL), 1), 0.5), SMALL)
    observation = jax.tree.map(lambda values: values[0], pictures_first(middle))
    image = jnp.ones((32, 32, 3))
    one = partial(with_artefact, observation=observation, survey=SMALL)
    changed = jax.jit(jax.vmap(one, (0, None)))
    images, which = (np.asarray(values) for values in changed(uniform, image))
    share = np.bincount(which, minlength=len(ARTEFACTS)) / 600
    np.testing.assert_allclose(share, [0.4, *[0.12] * 5], atol=0.05)
    names = np.array(ARTEFACTS)[which]
    assert (images[names == ""] == 1).all()
    assert (images[names == "saturated"] >= 1).all() and images[names == "saturated"].max() > 100
    in_bands = (images[names == "trail"] > 1.5).any(axis=(1, 2)).sum(axis=1)
    assert in_bands.max() == 1 and in_bands.mean() > 0.9
    missing = (images[names == "missing_band"] == 0).all(axis=(1, 2)).sum(axis=1)
    assert (missing == 1).all()
    lost = images[names == "border"][:, 0, 0] == 0
    assert lost.any() and (images[names == "border"][:, 16, 16] == 1).all()
    assert (images[names == "edge"][:, 16, 16] == 1).all()
    assert (images[names == "edge"] == 0).any(axis=(1, 2, 3)).mean() > 0.9
