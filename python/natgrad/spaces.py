"""Gymnasium spaces: observations become rows of floats, samples of a policy become actions."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import DTypeLike, NDArray

from natgrad import _core

__all__ = ["ActionDecoder", "ObservationEncoder"]

Lead = tuple[int, ...]


class ObservationEncoder:
    """Flattens observations of a space, in the order of `gymnasium.spaces.flatten`.

    Box and MultiBinary contribute their elements, Discrete and MultiDiscrete one-hot vectors, Dict
    and Tuple the concatenation of their parts.

    Args:
        space: the observation space of one environment.
        dtype: type of the rows, float32 or float64.

    Raises:
        ValueError: the space, or a part of it, has no fixed-size representation.
    """

    def __init__(self, space: Space[Any], dtype: DTypeLike = np.float32) -> None:
        self.space = space
        self.dtype = np.dtype(dtype)
        self.size = _flat_size(space, "observation")
        if self.size == 0:
            raise ValueError(f"observation space {space} has no elements; at least one is needed")
        self._is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1

    def encode(self, observations: Any, lead: Lead | None = None) -> NDArray[Any]:
        """Flattens one observation to (size,), or a batch of n to (n, size).

        Args:
            observations: an observation of the space, or a batch in the layout of a vector
                environment (every array of the structure has a leading axis).
            lead: the leading axes, () or (n,); read from the arrays when None.

        Raises:
            ValueError: shapes that do not fit the space, or an index outside of it.
        """
        if self._is_vector:  # nearly every environment: no copy where the type is right already
            row = np.asarray(observations, dtype=self.dtype)
            if lead is None:
                lead = row.shape[:-1][:1]
            if row.shape != (*lead, self.size):
                raise _shape_error("observation", row.shape, (self.size,))
            return row
        if lead is None:
            lead = _leading_axes(self.space, observations, "observation")
        parts = list(_flat_parts(self.space, observations, lead, "observation"))
        return np.concatenate(parts, axis=-1, dtype=self.dtype)


class ActionDecoder:
    """Turns what a policy samples into actions of a space.

    Discrete maps to `Categorical`, MultiDiscrete to `MultiCategorical`, MultiBinary to `Bernoulli`
    and Box to `DiagonalGaussian`, `Beta` or `SquashedGaussian`. Gaussian actions are clipped here,
    on their way to the environment; the likelihood is that of the unclipped sample. Beta and
    squashed Gaussian actions are mapped to the bounds of the space here, by `to_bounds`.

    Args:
        space: the action space of one environment.
        distribution: for actions in a Box: "gaussian", "beta" or "squashed". The latter two need a
            Box that is bounded in all directions.

    Attributes:
        distribution: of the samples.
        bounds: (low, high) of a Box, in its shape, where samples have to be clipped; else None.

    Raises:
        ValueError: there is no distribution for this space, or not the requested one.
    """

    def __init__(
        self,
        space: Space[Any],
        distribution: Literal["gaussian", "beta", "squashed"] = "gaussian",
    ) -> None:
        self.space = space
        self.distribution: _core.Distribution
        self._start: Any = None
        self.bounds: tuple[NDArray[Any], NDArray[Any]] | None = None
        self._bounded = False
        self._shape = tuple(space.shape or ())
        self._dtype = space.dtype
        if isinstance(space, spaces.Discrete):
            self.distribution = _core.Categorical(int(space.n))
            self._start = space.start if space.start else None
        elif isinstance(space, spaces.MultiDiscrete):
            self.distribution = _core.MultiCategorical([int(n) for n in space.nvec.flat])
            self._start = space.start if space.start.any() else None
        elif isinstance(space, spaces.MultiBinary):
            self.distribution = _core.Bernoulli(int(np.prod(space.shape)))
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            n, low, high = int(np.prod(space.shape)), space.low.ravel(), space.high.ravel()
            if distribution == "gaussian":
                self.distribution = _core.DiagonalGaussian(n)
                self.bounds = space.low, space.high
                self._bounded = bool(np.isfinite(self.bounds).any())
            elif not (np.isfinite([low, high]).all() and (low < high).all()):
                raise ValueError(
                    f"distribution is {distribution!r} and the action space {space}; wanted "
                    "finite bounds, low < high, or 'gaussian'"
                )
            elif distribution == "beta":
                self.distribution = _core.Beta(n, low, high)
            elif distribution == "squashed":
                self.distribution = _core.SquashedGaussian(n, low=low, high=high)
            else:
                raise ValueError(
                    f"distribution is {distribution!r}; wanted 'gaussian', 'beta' or 'squashed'"
                )
        else:
            raise ValueError(
                f"action space {space} is not supported; wanted Discrete, MultiDiscrete, "
                "MultiBinary or Box with floating-point elements"
            )
        if distribution != "gaussian" and not isinstance(space, spaces.Box):
            raise ValueError(
                f"distribution is {distribution!r} and the action space {space}; wanted a Box with "
                "finite bounds"
            )

    def plain(self, dtype: DTypeLike) -> bool:
        """Whether samples of a policy with this dtype are actions, but for the bounds of a Box."""
        if isinstance(self.space, spaces.Discrete):
            return self._start is None and self._dtype == np.int64
        return (
            isinstance(self.space, spaces.Box)
            and len(self._shape) == 1
            and self._dtype == np.dtype(dtype)
        )

    def decode(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Maps n samples of the policy to a batch of n actions, shape (n, *space.shape)."""
        if isinstance(self.distribution, _core.Beta | _core.SquashedGaussian):
            samples = self.distribution.to_bounds(samples)
        actions: NDArray[Any] = samples.astype(self._dtype, copy=False).reshape(
            len(samples), *self._shape
        )
        if self.bounds is not None and self._bounded:
            actions = np.minimum(np.maximum(actions, self.bounds[0]), self.bounds[1])
        return actions if self._start is None else np.add(actions, self._start)


def _flat_size(space: Space[Any], name: str) -> int:
    match space:
        case spaces.Box() | spaces.MultiBinary():
            return int(np.prod(space.shape))
        case spaces.Discrete():
            return int(space.n)
        case spaces.MultiDiscrete():
            return int(space.nvec.sum())
        case spaces.Dict() | spaces.Tuple():
            return sum(_flat_size(part, label) for label, part, _ in _parts(space, None, name))
    raise ValueError(
        f"{name}: space {type(space).__name__} is not supported; wanted Box, Discrete, "
        "MultiDiscrete, MultiBinary, or Dict and Tuple of these"
    )


def _parts(space: Space[Any], value: Any, name: str) -> list[tuple[str, Space[Any], Any]]:
    """Name, space and value of every part of a Dict or Tuple; values are None if `value` is."""
    keys: Sequence[Any]
    keys = list(space.spaces) if isinstance(space, spaces.Dict) else range(len(space.spaces))  # type: ignore[attr-defined]
    try:
        return [
            (f"{name}[{key!r}]", space.spaces[key], None if value is None else value[key])  # type: ignore[attr-defined]
            for key in keys
        ]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"{name} is {value!r}; wanted the parts {list(keys)} of {space}") from None


def _leading_axes(space: Space[Any], value: Any, name: str) -> Lead:
    while isinstance(space, spaces.Dict | spaces.Tuple):
        name, space, value = _parts(space, value, name)[0]
    shape: Lead = np.shape(value)
    wanted = tuple(space.shape or ())
    lead = shape[: len(shape) - len(wanted)]
    if len(lead) > 1 or lead + wanted != shape:
        raise _shape_error(name, shape, wanted)
    return lead


def _flat_parts(space: Space[Any], value: Any, lead: Lead, name: str) -> list[NDArray[Any]]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return [
            flat
            for label, part, part_value in _parts(space, value, name)
            for flat in _flat_parts(part, part_value, lead, label)
        ]
    array, wanted = np.asarray(value), tuple(space.shape or ())
    if array.shape != lead + wanted:
        raise _shape_error(name, array.shape, wanted)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return _one_hot(space, array.reshape(*lead, -1), name)
    return [array.reshape(*lead, -1)]


def _one_hot(
    space: spaces.Discrete | spaces.MultiDiscrete, values: NDArray[Any], name: str
) -> list[NDArray[Any]]:
    sizes = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
    indices = values - np.ravel(space.start)
    if not np.issubdtype(indices.dtype, np.integer) or ((indices < 0) | (indices >= sizes)).any():
        raise ValueError(f"{name} is {values.tolist()}; wanted integers within {space}")
    return [np.eye(int(n))[indices[..., i]] for i, n in enumerate(sizes)]


def _shape_error(name: str, shape: Lead, wanted: Lead) -> ValueError:
    return ValueError(
        f"{name} has shape {shape}; wanted {wanted}, with one axis in front for a batch"
    )
