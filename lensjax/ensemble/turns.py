"""A function of each of many arguments, some at a time: the numbers of `vmap` in less memory."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun


def vmap_in_turns(
    function: Callable[[Any], Array], arguments: Any, at_once: int | None = None
) -> Array:
    """Returns `function` of each of the `arguments` (argument, ...), all or so many at once.

    What depends on no argument is computed once, before the turns. Under `vmap` that comes of
    itself; out of a loop XLA may take it or not: on GPUs it leaves a matrix product in.
    """
    number, first = jax.tree.leaves(arguments)[0].shape[0], jax.tree.map(lambda x: x[0], arguments)
    if number == 1:
        # Mapped, the layers that a transformer loops over would stand behind the axis of the
        # arguments, and XLA would copy all their weights to the front in every step.
        return function(first)[None]
    if at_once is None or at_once >= number:
        return jax.vmap(function)(arguments)
    rest = _begun(function, first)
    return lax.map(rest, arguments, batch_size=at_once)


def _begun(function: Callable[[Any], Array], example: Any) -> Callable[[Any], Array]:
    """Returns what is left of `function` when all is computed that its argument plays no part in.

    `example` is an argument, of which only shapes and types count.
    """
    closed = jax.make_jaxpr(function)(example)
    jaxpr = closed.jaxpr
    varying, begun, rest = set(jaxpr.invars), [], []
    for equation in jaxpr.eqns:
        if varying.isdisjoint(v for v in equation.invars if isinstance(v, Var)):
            begun.append(equation)
        else:
            rest.append(equation)
            varying.update(equation.outvars)
    used = [*(v for equation in rest for v in equation.invars), *jaxpr.outvars]
    handed_on = list(dict.fromkeys(v for v in used if isinstance(v, Var) and v not in varying))

    def part(inputs: list, equations: list, outputs: list) -> Callable[..., list]:
        cut = jaxpr.replace(constvars=[], invars=inputs, eqns=equations, outvars=outputs)
        return jaxpr_as_fun(ClosedJaxpr(cut, []))

    results = part(jaxpr.constvars, begun, handed_on)(*closed.consts)
    remainder = part([*handed_on, *jaxpr.invars], rest, jaxpr.outvars)
    return lambda argument: remainder(*results, *jax.tree.leaves(argument))[0]
