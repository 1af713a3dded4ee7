"""Policies that know Gymnasium spaces; copies and pickles of them and of their parts."""

import copy
import copyreg
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from natgrad import _core
from natgrad._core import ParameterBlock as ParameterBlock

if TYPE_CHECKING:
    from gymnasium import Space

__all__ = ["ParameterBlock", "Policy", "ValueFunction"]

_DISTRIBUTIONS: dict[str, Callable[..., _core.Distribution]] = {
    "Categorical": _core.Categorical,
    "DiagonalGaussian": _core.DiagonalGaussian,
    "MultiCategorical": _core.MultiCategorical,
    "Bernoulli": _core.Bernoulli,
    "SquashedGaussian": _core.SquashedGaussian,
    "Beta": _core.Beta,
}


class Policy(_core.Policy):
    """A network and a distribution over actions, with one flat parameter vector.

    See `natgrad._core.Policy` for the constructor and the numerics; this class adds construction
    from Gymnasium spaces, copies and pickling.
    """

    @classmethod
    def for_spaces(
        cls,
        observation_space: "Space[Any]",
        action_space: "Space[Any]",
        *,
        distribution: Literal["gaussian", "beta", "squashed"] = "gaussian",
        **options: Any,
    ) -> Self:
        """A policy whose input and output fit two Gymnasium spaces.

        Args:
            observation_space: Box or Discrete, MultiDiscrete, MultiBinary, Dict or Tuple; all but a
                one-dimensional Box are flattened, see `natgrad.spaces.ObservationEncoder`.
            action_space: Discrete, MultiDiscrete, MultiBinary or floating-point Box.
            distribution: of actions in a Box, see `natgrad.spaces.ActionDecoder`.
            **options: the constructor's other arguments (hidden, activation, dtype, ...).

        Raises:
            ValueError: a space that has no representation here.
        """
        from natgrad.spaces import ActionDecoder, ObservationEncoder

        encoder = ObservationEncoder(observation_space)
        decoder = ActionDecoder(action_space, distribution)
        return cls(encoder.size, decoder.distribution, **options)

    def copy(self) -> Self:
        """An independent policy with the same parameters, normaliser and attributes."""
        return copy.copy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), *_contents(self)), vars(self) or None


class ValueFunction(_core.ValueFunction):
    """A network that predicts the return of an observation; copies and pickles like `Policy`."""

    def copy(self) -> Self:
        """An independent value function with the same parameters, scales and attributes."""
        return copy.copy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), *_contents(self)), vars(self) or None


_Model = TypeVar("_Model", Policy, ValueFunction)


def _contents(model: Policy | ValueFunction) -> tuple[dict[str, Any], Any, Any, Any]:
    scale = model.target_scale if isinstance(model, ValueFunction) else None
    return model.config, np.array(model.parameters), model.normalizer, scale


def _rebuild(
    cls: type[_Model],
    config: Mapping[str, Any],
    parameters: ArrayLike,
    normalizer: tuple[ArrayLike, ArrayLike, float],
    target_scale: tuple[float, float] | None,
) -> _Model:
    arguments = dict(config)
    if "distribution" in arguments:
        arguments["distribution"] = _distribution(arguments["distribution"])
    # Not by the constructor of a subclass, which may have other arguments. Attributes come after.
    base: Any = Policy if "distribution" in arguments else ValueFunction
    model = cls.__new__(cls)
    base.__init__(model, **arguments)
    model.parameters = parameters
    model.set_normalizer(*normalizer)
    if target_scale is not None and isinstance(model, ValueFunction):
        model.target_scale = target_scale
    return model


def _distribution(config: Mapping[str, Any]) -> _core.Distribution:
    arguments = dict(config)
    return _DISTRIBUTIONS[arguments.pop("name")](**arguments)


def _reduce_distribution(distribution: _core.Distribution) -> tuple[Any, ...]:
    """By the description that a policy with this distribution gives of it."""
    described = _core.Policy(1, distribution, hidden=())
    return _distribution, (described.config["distribution"],)


def _rng(seed: int, stream: int, counter: int) -> _core.Rng:
    rng = _core.Rng(seed, stream)
    rng.counter = counter
    return rng


def _reduce_rng(rng: _core.Rng) -> tuple[Any, ...]:
    return _rng, (rng.seed, rng.stream, rng.counter)


for _class in _DISTRIBUTIONS.values():
    copyreg.pickle(_class, _reduce_distribution)  # type: ignore[arg-type]
copyreg.pickle(_core.Rng, _reduce_rng)
