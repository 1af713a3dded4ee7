"""What each peer gives to the comparison, and what the peers that use torch share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from natgrad.bench import Doubles, Shape

__all__ = ["Peer", "assign", "flat", "spaces_of"]


@dataclass(frozen=True)
class Peer:
    """One implementation of the update, set up for a problem.

    Attributes:
        name: of the library.
        detail: how the update is written.
        run: makes one whole update, from the problem's parameters.
        prepare: is called before each `run`, untimed.
        step: makes an update and returns the change of the parameters, in natgrad's order.
        product: maps v, (P,) float64, to F v, without damping.
        damped: whether the step is scaled by the damped matrix.
    """

    name: str
    detail: str
    run: Callable[[], Any]
    prepare: Callable[[], None]
    step: Callable[[], Doubles]
    product: Callable[[Doubles], Doubles]
    damped: bool = False


def flat(tensors: Sequence[Any]) -> Doubles:
    """The torch tensors of the parameters as one array."""
    return np.concatenate([t.detach().numpy().ravel() for t in tensors]).astype(np.float64)


def assign(tensors: Sequence[Any], theta: Any) -> None:
    """Puts parameters in natgrad's order into torch tensors."""
    import torch

    offset = 0
    with torch.no_grad():
        for tensor in tensors:
            part = theta[offset : offset + tensor.numel()]
            tensor.copy_(torch.as_tensor(np.array(part)).reshape(tensor.shape))
            offset += tensor.numel()


def spaces_of(shape: Shape) -> tuple[Any, Any]:
    """Gymnasium's spaces of observations and actions."""
    from gymnasium import spaces

    observations = spaces.Box(-np.inf, np.inf, (shape.observation_size,), np.float32)
    if shape.gaussian:
        return observations, spaces.Box(-1.0, 1.0, (shape.outputs,), np.float32)
    return observations, spaces.Discrete(shape.outputs)
