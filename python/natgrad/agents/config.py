"""Options of the agents: one field each with default, range, source and help.

Everything else follows from the fields: the checks, the command line with its help, what
config.json and checkpoints hold, and the arguments of the core's objects, which take the fields of
a group.
"""

# ruff: noqa: RUF009 (`_option` is `dataclasses.field`)

import dataclasses
import difflib
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from natgrad import _core
from natgrad.agents import values

__all__ = ["AgentConfig", "NPGConfig", "REINFORCEConfig", "TRPOConfig", "range_of"]

Update = _core.TrustRegionUpdate | _core.PolicyGradientUpdate
CriticFit = _core.GaussNewtonFit | _core.AdamFit


def _option(
    default: Any,
    group: str,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    source: str | None = None,
) -> Any:
    """A field with its help text, its range and where its default comes from.

    Numbers are in low <= value <= high and above < value; the values of the core check themselves.
    """
    metadata = {
        "group": group, "help": text, "low": low, "high": high, "above": above, "source": source,
    }  # fmt: skip
    if isinstance(default, Mapping):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class AgentConfig(ABC):
    """Options that all agents share.

    Construction checks every field and raises ValueError or TypeError with the name of the option,
    what was given and what is wanted. An option value may be given as the text of its constructor.
    """

    seed: int = _option(0, "run", "root of all random streams", low=0)
    n_envs: int = _option(1, "run", "copies of the environment that are stepped together", low=1)
    vectorization: Literal["sync", "async"] = _option(
        "sync", "run", "step the copies in turn (sync) or in one process each (async)"
    )
    stepper: Literal["gymnasium", "envpool"] = _option(
        "gymnasium", "run", "what steps the environments: Gymnasium, or EnvPool's task of this id"
    )
    env_options: Mapping[str, Any] = _option(
        {}, "run", "keyword arguments for gymnasium.make or EnvPool, as a JSON object on the "
        "command line",
    )  # fmt: skip
    batch_size: int = _option(
        2048, "learning", "environment steps per update, over all copies", low=2
    )
    # 0.99 costs a quarter or more on HalfCheetah-v5 and Hopper-v5, and is better where it is a
    # preset (docs/results.md).
    gamma: float = _option(
        0.995, "learning", "discount factor", low=0.0, high=1.0,
        source="Rajeswaran et al. 2017",
    )  # fmt: skip
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
    distribution: Literal["gaussian", "beta", "squashed"] = _option(
        "gaussian", "policy", "distribution of actions in a Box: Gaussian, clipped on the way to "
        "the environment; beta or squashed (Gaussian under tanh), within the bounds",
    )  # fmt: skip
    log_std_init: float = _option(
        0.0, "policy", "initial logarithm of the standard deviation of Gaussian actions",
        low=-20.0, high=2.0,
    )  # fmt: skip
    activation: Literal["tanh", "relu", "elu", "silu", "gelu", "identity"] = _option(
        "tanh", "networks", "activation of the hidden layers"
    )
    init: Literal["orthogonal", "scaled"] = _option(
        "orthogonal", "networks", "initialisation of the weights"
    )
    dtype: Literal["float32", "float64"] = _option(
        "float32", "networks", "type of parameters and observations"
    )
    fourier_features: int = _option(
        0, "networks", "random Fourier features in front of the networks; 0 for none", low=0
    )
    fourier_bandwidth: float = _option(
        1.0, "networks", "length scale of the Fourier features", above=0.0
    )
    critic: Literal["gauss_newton", "adam"] = _option(
        "gauss_newton", "critic", "how the value function is fitted"
    )
    critic_hidden: tuple[int, ...] = _option(
        (64, 64), "critic", "widths of the hidden layers", low=1
    )
    critic_steps: int = _option(4, "critic by gauss_newton", "steps per update", low=1)
    critic_cg_iterations: int = _option(
        5, "critic by gauss_newton", "conjugate gradient iterations per step", low=1
    )
    critic_damping: float = _option(
        0.1, "critic by gauss_newton", "initial damping, adapted from step to step", above=0.0
    )
    critic_max_change: float = _option(
        1.0, "critic by gauss_newton", "largest mean squared change of the scaled predictions in "
        "one step", above=0.0,
    )  # fmt: skip
    critic_epochs: int = _option(10, "critic by adam", "passes over the batch per update", low=1)
    critic_minibatch_size: int = _option(64, "critic by adam", "observations per step", low=1)
    critic_learning_rate: float = _option(1e-3, "critic by adam", "learning rate", above=0.0)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for option in dataclasses.fields(self):
            value = _checked(option, hints[option.name], getattr(self, option.name))
            object.__setattr__(self, option.name, value)
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
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def group(self, name: str, prefix: str = "") -> dict[str, Any]:
        """The options of a group, with their names less a prefix, as arguments."""
        return {
            f.name.removeprefix(prefix): getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.metadata["group"] == name
        }

    @abstractmethod
    def build_update(self) -> Update:
        """The update of the policy."""

    def build_critic_fit(self, seed: int) -> CriticFit:
        """The fit of the critic; `seed` is that of the order of the minibatches."""
        arguments = self.group(f"critic by {self.critic}", "critic_")
        if self.critic == "gauss_newton":
            return _core.GaussNewtonFit(**arguments)
        return _core.AdamFit(**arguments, seed=seed)


@dataclass(frozen=True, kw_only=True)
class NPGConfig(AgentConfig):
    """Options of `natgrad.NPG`: the closed-form step to the boundary of the trust region."""

    max_kl: float = _option(
        0.01, "trust region", "largest mean KL(old || new) of an update, in nats", above=0.0,
        source="Schulman et al. 2015",
    )  # fmt: skip
    # A step of fixed length cannot come to rest in noise; PPO's settings let theirs shrink in the
    # same way (Schulman et al. 2017, table 5).
    max_kl_end: float = _option(
        1.0, "schedule", "fraction of max_kl at the end of training, to which the bound falls "
        "linearly", above=0.0, high=1.0,
    )  # fmt: skip
    log_std_min: float = _option(
        -20.0, "trust region", "floor of the logarithm of the standard deviation of Gaussian "
        "actions", low=-20.0, high=2.0,
    )  # fmt: skip
    # The accuracy of ten plain products is reached in less time (docs/decisions/0022-*.md).
    damping: float | _core.FixedDamping | _core.TraceDamping | _core.AdaptiveDamping = _option(
        0.1, "trust region", "added to the diagonal of the Fisher matrix: a number, or a rule",
        low=0.0, source="the code of Schulman et al. 2015",
    )  # fmt: skip
    cg_iterations: int = _option(
        10, "trust region", "Fisher-vector products per update at most", low=1,
        source="the code of Schulman et al. 2015",
    )  # fmt: skip
    solver: Literal["auto", "cg", "direct"] | _core.ConjugateGradient = _option(
        "auto", "trust region", "solve by conjugate gradients (cg), without iterations where there "
        "is a way (direct), or as a cost model says is faster (auto)",
    )  # fmt: skip
    preconditioner: (
        Literal["none", "auto", "kfac", "subsample"] | _core.KFac | _core.Subsample
    ) = _option(
        "auto", "trust region", "preconditioner of the conjugate gradients; auto takes kfac where "
        "it is as accurate as cg_iterations plain iterations in less time",
    )  # fmt: skip
    fisher: Literal["exact", "empirical"] = _option(
        "exact", "trust region", "expectation over the actions of the policy (exact), or mean over "
        "those taken (empirical)",
    )  # fmt: skip
    curvature_fraction: float = _option(
        1.0, "trust region", "fraction of the batch over which the Fisher matrix is averaged",
        above=0.0, high=1.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build_update()  # checks what concerns several options

    def build_update(self) -> _core.TrustRegionUpdate:
        """The update of the policy, with a line search if there is an option for it."""
        arguments = {"line_search": None, **self.group("trust region")}
        return _core.TrustRegionUpdate(normalize_advantages=True, **arguments)


@dataclass(frozen=True, kw_only=True)
class TRPOConfig(NPGConfig):
    """Options of `natgrad.TRPO`: the step of `NPG`, shortened by a line search."""

    # A search can afford longer steps, and they learn more (docs/results.md).
    max_kl: float = _option(
        0.03, "trust region", "largest mean KL(old || new) of an update, in nats", above=0.0
    )
    line_search: _core.LineSearch = _option(
        _core.LineSearch(), "trust region", "how a step is shortened until it is acceptable"
    )


@dataclass(frozen=True, kw_only=True)
class REINFORCEConfig(AgentConfig):
    """Options of `natgrad.REINFORCE`: the plain policy gradient, one step per batch."""

    learning_rate: float = _option(0.01, "policy gradient", "length of a step", above=0.0)
    optimizer: Literal["adam", "sgd"] = _option("adam", "policy gradient", "how steps are taken")

    def build_update(self) -> _core.PolicyGradientUpdate:
        """The update of the policy."""
        return _core.PolicyGradientUpdate(
            **self.group("policy gradient"), normalize_advantages=True
        )


def range_of(option: dataclasses.Field[Any], annotation: Any) -> str:
    """What an option takes, in words."""
    names, kinds, classes = _alternatives(annotation)
    spelled = [f"{cls.__name__}(...)" for cls in classes]
    if names:
        return f"one of {', '.join([*names, *spelled])}"
    if bool in kinds:
        return "True or False"
    if kinds and typing.get_origin(kinds[0]) is tuple:
        return "a sequence of integers"
    for kind, words in ((int, "an integer"), (float, "a number")):
        if kind in kinds:
            spelled = [" ".join([words, _limits(option)]).strip(), *spelled]
    return _either(spelled) if spelled else "a mapping of names to values"


def _alternatives(annotation: Any) -> tuple[list[str], list[Any], list[type]]:
    """Names, other types and classes of values that an annotation joins by `|`."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = list(typing.get_args(annotation)) if union else [annotation]
    names = [n for part in parts if _is_literal(part) for n in typing.get_args(part)]
    classes = [part for part in parts if part in values.CLASSES.values()]
    kinds = [part for part in parts if not _is_literal(part) and part not in classes]
    return names, kinds, classes


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Literal


def _checked(option: dataclasses.Field[Any], annotation: Any, value: Any) -> Any:
    """`value` in the type of its field, or an error that names the option."""
    names, kinds, classes = _alternatives(annotation)
    wanted = f"{option.name} is {value!r}; wanted {range_of(option, annotation)}"
    if isinstance(value, str) and value in names:
        return value
    if classes:
        if isinstance(value, str):
            try:
                value = values.parse(value)
            except ValueError as error:
                raise ValueError(f"{wanted} ({error})") from error
        if isinstance(value, tuple(classes)):
            return value
    if not kinds:
        raise (TypeError if classes and not isinstance(value, str) else ValueError)(wanted)
    kind = kinds[0]
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError(wanted)
        return value
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise TypeError(wanted)
        each = f"an integer {_limits(option)}"
        return tuple(_number(option, int, item, each) for item in value)
    if kind in (int, float):
        return _number(option, kind, value, range_of(option, annotation))
    if not isinstance(value, Mapping):
        raise TypeError(wanted)
    return dict(value)


def _number(
    option: dataclasses.Field[Any], kind: type[int | float], value: Any, wanted: str
) -> int | float:
    message = f"{option.name} is {value!r}; wanted {wanted}"
    try:
        number = kind(value)
        if isinstance(value, bool | str) or number != value or not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise (ValueError if isinstance(value, int | float) else TypeError)(message) from None
    low, high, above = (option.metadata[limit] for limit in ("low", "high", "above"))
    if (
        (above is not None and number <= above)
        or (low is not None and number < low)
        or (high is not None and number > high)
    ):
        raise ValueError(message)
    return number


def _limits(option: dataclasses.Field[Any]) -> str:
    signs = (("above", ">"), ("low", ">="), ("high", "<="))
    limits = [(sign, option.metadata[name]) for name, sign in signs]
    return " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _plain(value: Any) -> Any:
    """A value of an option in JSON types."""
    if type(value) in values.CLASSES.values():
        return values.text_of(value)
    return list(value) if isinstance(value, tuple) else value
