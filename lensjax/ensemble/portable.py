"""An ensemble as one file that JAX and NumPy alone can run, on a CPU, a GPU or a TPU.

The file is an `.npz` without pickles: `program`, the serialised step for any number of cutouts;
`weight_0` and so on, its weights; and `about`, JSON that says what the images must be.
"""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from lensjax.data.brightness import measure_in_step, sorted_quantile
from lensjax.data.on_device import Inputs, InputSpec
from lensjax.ensemble import sharding
from lensjax.ensemble.stack import Ensemble
from lensjax.ensemble.step import StepOptions, ensemble_step, weights_of
from lensjax.errors import UsageError
from lensjax.files import replacing

PLATFORMS = ("cpu", "cuda", "tpu")


def program_of(ensemble: Ensemble, input_spec: InputSpec, options: StepOptions) -> export.Exported:
    """Returns the program of an ensemble, abstract or not, for all PLATFORMS.

    It takes the leaves of `ensemble.states` and images (batch, height, width, band) float32 without
    NaN, and returns the fields of `Scores` by name. The brightness of the sky, which else the host
    measures, is measured in it. Raises UsageError for the stretch `zscale`, whose limits only the
    host can find.
    """
    if any(each.stretch == "zscale" for each in ensemble.preprocessings):
        raise UsageError("members of the stretch zscale cannot be exported: astropy measures it")
    mesh = sharding.mesh_of(jax.local_devices()[:1])
    # A jitted function's compiler options are not exported: what it wraps is.
    step = inspect.unwrap(ensemble_step(ensemble, mesh, options))
    leaves, structure = jax.tree.flatten(ensemble.states)

    def score(weights: list[Array], images: Any) -> dict[str, Array]:
        brightness: Any = tuple(
            measure_in_step(
                images[..., np.array(transform.channels)], transform.geometry, sorted_quantile
            )
            for transform in input_spec.transforms
        )
        states = jax.tree.unflatten(structure, weights)
        inputs = Inputs((images,), brightness, input_spec.transforms)
        return step(weights_of(ensemble, mesh, options, states), inputs)._asdict()

    (image_spec,) = input_spec.image_specs
    images = jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), *image_spec.shape), jnp.float32)
    weights = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    return export.export(jax.jit(score), platforms=PLATFORMS)(weights, images)


def save(
    path: Path,
    ensemble: Ensemble,
    input_spec: InputSpec,
    options: StepOptions,
    bands: Sequence[str],
) -> None:
    """Writes an ensemble that scores cutouts of the form `input_spec` in these `bands`.

    Raises UsageError as `program_of` does.
    """
    about = {
        "bands": list(bands),
        "image_shape": list(input_spec.image_specs[0].shape),
        "members": list(ensemble.names),
        "options": options.of_step(),
    }
    program = np.frombuffer(program_of(ensemble, input_spec, options).serialize(), np.uint8)
    leaves = jax.tree.leaves(ensemble.states)
    arrays: dict[str, Any] = {f"weight_{number}": leaf for number, leaf in enumerate(leaves)}
    with replacing(path) as file:
        np.savez(file, program=program, about=np.array(json.dumps(about)), **arrays)
