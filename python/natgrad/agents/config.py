"""Options of the agents: one field each with its default, range and help text.

The command line is generated from these classes, so that both say the same.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

__all__ = ["AgentConfig", "NPGConfig", "REINFORCEConfig", "TRPOConfig"]


def _option(default: Any, group: str, text: str, *, low: float | None = None,
            high: float | None = None, above: float | None = None) -> Any:  # fmt: skip
    """A field with its help text and range: low <= value <= high, above < value."""
    metadata = {"group": group, "help": text, "low": low, "high": high, "above": above}
    if isinstance(default, Mapping):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Options that all agents share.

    Construction checks every field and raises ValueError or TypeError with the name of the option,
    what was given and what is wanted.
    """

    seed: int = _option(0, "run", "root of all random streams", low=0)
    n_envs: int = _option(1, "run", "copies of the environment that are stepped together", low=1)
    vectorization: Literal["sync", "async"] = _option(
        "sync", "run", "step the copies in turn (sync) or in one process each (async)"
    )
    stepper: Literal["gymnasium", "envpool"] = _option(
        "gymnasium", "run", "who steps the environment: itself, or EnvPool's task of the same id"
    )
    env_options: Mapping[str, Any] = _option(
        {}, "run", "keyword arguments for gymnasium.make or EnvPool, as a JSON object on the "
        "command line",
    )  # fmt: skip
    batch_size: int = _option(
        2048, "learning", "environment steps per update, over all copies", low=2
    )
    # As Rajeswaran et al. (2017); 0.99 costs a quarter or more on HalfCheetah-v5 and Hopper-v5, and
    # is better where it is a preset (docs/results.md).
    gamma: float = _option(0.995, "learning", "discount factor", low=0.0, high=1.0)
    gae_lambda: float = _option(
        0.95, "learning", "lambda of generalised advantage estimation", low=0.0, high=1.0
    )
    normalize_observations: bool = _option(
        True, "learning", "scale observations by their running mean and standard deviation"
    )
    clip_observations: float = _option(
        10.0, "learning", "bound of scaled observations, in standard deviations", above=0.0
    )
    hidden: tuple[int, ...] = _option(
        (64, 64), "policy", "widths of the hidden layers; empty for a linear policy", low=1
    )
    activation: Literal["tanh", "relu", "elu", "silu", "gelu", "identity"] = _option(
        "tanh", "policy", "activation of the hidden layers"
    )
    distribution: Literal["gaussian", "beta", "squashed"] = _option(
        "gaussian", "policy", "of actions in a Box: Gaussian, clipped on the way to the "
        "environment; beta or squashed (Gaussian under tanh), within the bounds",
    )  # fmt: skip
    log_std_init: float = _option(
        0.0, "policy", "initial logarithm of the standard deviation of Gaussian actions",
        low=-20.0, high=2.0,
    )  # fmt: skip
    init: Literal["orthogonal", "scaled"] = _option(
        "orthogonal", "policy", "initialisation of the weights"
    )
    dtype: Literal["float32", "float64"] = _option(
        "float32", "policy", "type of parameters and observations"
    )
    fourier_features: int = _option(
        0, "policy", "random Fourier features in front of the networks; 0 for none", low=0
    )
    fourier_bandwidth: float = _option(
        1.0, "policy", "length scale of the Fourier features", above=0.0
    )
    critic: Literal["gauss_newton", "adam"] = _option(
        "gauss_newton", "critic", "how the value function is fitted"
    )
    critic_hidden: tuple[int, ...] = _option(
        (64, 64), "critic", "widths of the hidden layers", low=1
    )
    critic_steps: int = _option(4, "critic", "gauss_newton: steps per update", low=1)
    critic_cg_iterations: int = _option(
        5, "critic", "gauss_newton: conjugate gradient iterations per step", low=1
    )
    critic_damping: float = _option(
        0.1, "critic", "gauss_newton: initial damping, adapted from step to step", above=0.0
    )
    critic_max_change: float = _option(
        1.0, "critic", "gauss_newton: largest mean squared change of the scaled predictions "
        "in one step", above=0.0,
    )  # fmt: skip
    critic_epochs: int = _option(10, "critic", "adam: passes over the batch per update", low=1)
    critic_minibatch_size: int = _option(64, "critic", "adam: observations per step", low=1)
    critic_learning_rate: float = _option(1e-3, "critic", "adam: learning rate", above=0.0)

    def __post_init__(self) -> None:
        for name, annotation in typing.get_type_hints(type(self)).items():
            metadata = type(self).__dataclass_fields__[name].metadata
            value = _checked(name, annotation, getattr(self, name), metadata)
            object.__setattr__(self, name, value)
        if self.stepper == "envpool" and self.vectorization != "sync":
            raise ValueError(
                f"vectorization is {self.vectorization!r} with stepper 'envpool'; wanted 'sync': "
                "EnvPool has threads of its own"
            )
        if self.batch_size < self.n_envs:
            raise ValueError(
                f"batch_size is {self.batch_size}; wanted at least n_envs = {self.n_envs}, "
                "one step of every copy"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Builds the configuration from a mapping; unknown names are refused.

        Raises:
            ValueError: a name that is no option, with the nearest one that is; a bad value.
            TypeError: a value of the wrong type.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"; did you mean {near[0]!r}?"
                    if near
                    else f"; wanted one of {', '.join(known)}"
                )
                raise ValueError(f"{name!r} is not an option of {cls.__name__[:-6]}{hint}")
        return cls(**options)

    def to_json(self) -> dict[str, Any]:
        """The options as JSON types; `from_options` takes them back."""
        return {
            f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value
            for f in dataclasses.fields(self)
        }


@dataclass(frozen=True, kw_only=True)
class NPGConfig(AgentConfig):
    """Options of `natgrad.NPG`: the closed-form step to the boundary of the trust region."""

    # Schulman et al. (2015) bound the mean KL divergence by 0.01; damping and accuracy, that of ten
    # plain products, are those of the reference implementation of the same authors. The accuracy is
    # reached in less time (docs/decisions/0022-*.md).
    max_kl: float = _option(
        0.01, "trust region", "largest mean KL(old || new) of an update, in nats", above=0.0
    )
    # A step of fixed length cannot come to rest in noise; PPO's settings let theirs shrink in the
    # same way (Schulman et al. 2017, table 5).
    max_kl_end: float = _option(
        1.0, "trust region", "part of max_kl that is left at the end of training, to which it "
        "falls linearly", above=0.0, high=1.0,
    )  # fmt: skip
    log_std_min: float = _option(
        -20.0, "trust region", "floor of the logarithm of the standard deviation of Gaussian "
        "actions", low=-20.0, high=2.0,
    )  # fmt: skip
    damping: float = _option(0.1, "trust region", "added to the Fisher matrix's diagonal", low=0.0)
    damping_mode: Literal["fixed", "trace", "adaptive"] = _option(
        "fixed", "trust region", "damping as it is, times the mean of the Fisher matrix's "
        "diagonal, or adapted from update to update by Levenberg and Marquardt's rule",
    )  # fmt: skip
    damping_min: float = _option(1e-5, "trust region", "adaptive damping: lower bound", above=0.0)
    damping_max: float = _option(10.0, "trust region", "adaptive damping: upper bound", above=0.0)
    cg_iterations: int = _option(
        10, "trust region", "conjugate gradient iterations: Fisher products at most", low=1
    )
    cg_rtol: float = _option(
        1e-10, "trust region", "relative residual at which conjugate gradients stop", low=0.0
    )
    solver: Literal["auto", "cg", "direct"] = _option(
        "auto", "trust region", "solve by conjugate gradients (cg), without iterations where there "
        "is a way (direct), or as a cost model says is faster",
    )  # fmt: skip
    preconditioner: Literal["none", "auto", "kfac", "subsample", "diagonal", "nystrom"] = _option(
        "auto", "trust region", "of the conjugate gradients; auto: kfac where it is as accurate as "
        "cg_iterations plain ones in less time",
    )  # fmt: skip
    kfac_every: int = _option(
        2, "trust region", "kfac: average the factors over every so-manieth observation", low=1
    )
    kfac_refresh: int = _option(
        1, "trust region", "kfac: updates that share one average of the factors", low=1
    )
    kfac_decay: float = _option(
        0.0, "trust region", "kfac: weight of the averages so far in a new one", low=0.0, high=0.999
    )
    subsample_every: int = _option(
        6, "trust region", "subsample: inner iterations on every so-manieth observation", low=1
    )
    subsample_iterations: int = _option(
        4, "trust region", "subsample: inner iterations for each outer one", low=1
    )
    nystrom_rank: int = _option(
        20, "trust region", "nystrom: products that it is built from", low=1
    )
    cg_last_residual: bool = _option(
        True, "trust region", "measure the residual after the last product, too; half of that "
        "product is saved if not",
    )  # fmt: skip
    cg_progress_tolerance: float = _option(
        0.0, "trust region", "progress of the quadratic model per iteration, relative to its "
        "value, below which conjugate gradients stop; 0 for none", low=0.0,
    )  # fmt: skip
    cg_progress_window: int = _option(
        3, "trust region", "iterations over which that progress is averaged", low=1
    )
    warm_start: bool = _option(
        False, "trust region", "start conjugate gradients from the last step"
    )
    fisher: Literal["exact", "empirical"] = _option(
        "exact", "trust region", "Fisher matrix of the policy, or of the actions taken"
    )
    curvature_fraction: float = _option(
        1.0, "trust region", "part of the batch that the Fisher matrix is averaged over",
        above=0.0, high=1.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.damping_min, self.damping_max
        if low > high:
            raise ValueError(f"damping_min is {low}; wanted at most damping_max = {high}")
        if self.damping_mode == "adaptive" and not low <= self.damping <= high:
            raise ValueError(
                f"damping is {self.damping} with damping_mode 'adaptive'; wanted a number between "
                f"damping_min = {low} and damping_max = {high}"
            )


@dataclass(frozen=True, kw_only=True)
class TRPOConfig(NPGConfig):
    """Options of `natgrad.TRPO`: the step of `NPG`, shortened by a line search."""

    # A search can afford longer steps, and they learn more (docs/results.md).
    max_kl: float = _option(
        0.03, "trust region", "largest mean KL(old || new) of an update, in nats", above=0.0
    )
    line_search_shrink: float = _option(
        0.8, "line search", "factor by which a rejected step is shortened", above=0.0, high=0.99
    )
    line_search_max_backtracks: int = _option(
        10, "line search", "candidates before the update is given up", low=1
    )
    line_search_accept_ratio: float = _option(
        0.0, "line search", "least improvement, as a fraction of the expected one",
        low=0.0, high=0.99,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class REINFORCEConfig(AgentConfig):
    """Options of `natgrad.REINFORCE`: the plain policy gradient, one step per batch."""

    learning_rate: float = _option(0.01, "policy gradient", "length of a step", above=0.0)
    optimizer: Literal["adam", "sgd"] = _option("adam", "policy gradient", "how steps are taken")


def _checked(name: str, annotation: Any, value: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` in the type of its field, or an error that names the option."""
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(choices)}")
        return value
    if annotation is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; wanted True or False")
        return value
    if typing.get_origin(annotation) is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise TypeError(f"{name} is {value!r}; wanted a sequence of integers")
        return tuple(_number(name, int, item, metadata) for item in value)
    if annotation in (int, float):
        return _number(name, annotation, value, metadata)
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {value!r}; wanted a mapping of names to values")
    return dict(value)


def _number(name: str, kind: type, value: Any, metadata: Mapping[str, Any]) -> int | float:
    low, high, above = metadata["low"], metadata["high"], metadata["above"]
    limits = [f"> {above:g}"] if above is not None else []
    limits += [f">= {low:g}"] if low is not None else []
    limits += [f"<= {high:g}"] if high is not None else []
    wanted = ("an integer " if kind is int else "a number ") + " and ".join(limits)
    try:
        number: int | float = kind(value)
        if isinstance(value, bool | str) or number != value or not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise (ValueError if isinstance(value, int | float) else TypeError)(
            f"{name} is {value!r}; wanted {wanted}"
        ) from None
    if (
        (above is not None and number <= above)
        or (low is not None and number < low)
        or (high is not None and number > high)
    ):
        raise ValueError(f"{name} is {value!r}; wanted {wanted}")
    return number
