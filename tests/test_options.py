"""Options: every one counts, each is checked, and values are spelled as their constructors."""

import dataclasses
import re

import numpy as np
import pytest
from environments import SMALL, Random, history, parameters

import natgrad
from natgrad import (
    AdaptiveDamping,
    ConjugateGradient,
    FixedDamping,
    KFac,
    LineSearch,
    Progress,
    Subsample,
    TraceDamping,
)
from natgrad.agents import NPGConfig, REINFORCEConfig, TRPOConfig, values

ALGORITHMS = {"trpo": natgrad.TRPO, "npg": natgrad.NPG, "reinforce": natgrad.REINFORCE}


WITH_ADAM = {"critic": "adam"}
# Problems as small as these are solved directly.
WITH_CG = {"solver": "cg", "preconditioner": "none"}
WITH_BACKTRACKING = {"max_kl": 5.0, "damping": 1e-5, **WITH_CG}
CHANGES = {  # option: another value, and options without which it would mean nothing
    "seed": (1, {}),
    "n_envs": (2, {}),
    "batch_size": (150, {}),
    "gamma": (0.5, {}),
    "gae_lambda": (0.5, {}),
    "normalize_observations": (False, {}),
    "clip_observations": (0.5, {}),
    "hidden": ((5, 4), {}),
    "activation": ("relu", {}),
    "distribution": ("beta", {}),
    "log_std_init": (-1.0, {}),
    "init": ("scaled", {}),
    "dtype": ("float64", {}),
    "fourier_features": (10, {}),
    "fourier_bandwidth": (3.0, {"fourier_features": 10}),
    "critic": ("adam", {}),
    "critic_hidden": ((3,), {}),
    "critic_steps": (1, {}),
    "critic_cg_iterations": (1, {}),
    "critic_damping": (10.0, {}),
    "critic_max_change": (1e-3, {}),
    "critic_epochs": (2, WITH_ADAM),
    "critic_minibatch_size": (20, WITH_ADAM),
    "critic_learning_rate": (0.1, WITH_ADAM),
    "max_kl": (0.05, {}),
    "max_kl_end": (0.1, {}),
    "log_std_min": (0.5, {"log_std_init": 0.5}),
    "damping": (TraceDamping(), {}),
    "cg_iterations": (1, WITH_CG),
    "solver": ("direct", WITH_CG),
    "preconditioner": ("kfac", {"solver": "cg"}),
    "fisher": ("empirical", {}),
    "curvature_fraction": (0.2, {}),
    "line_search": (LineSearch(shrink=0.3), WITH_BACKTRACKING),
    "learning_rate": (0.1, {}),
    "optimizer": ("sgd", {}),
}
TESTED_BELOW = {"vectorization", "env_options"}  # the first must not change what is learnt
TESTED_WITH_THE_POOL = {"stepper"}  # in test_pool.py
CONFIGS = (TRPOConfig, NPGConfig, REINFORCEConfig)


def test_every_option_is_tested():
    names = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    assert names == CHANGES.keys() | TESTED_BELOW | TESTED_WITH_THE_POOL


def algorithm_with(option):
    return next(a for a in ALGORITHMS.values() if option in a.config_class.__dataclass_fields__)


@pytest.mark.parametrize("option", CHANGES)
def test_every_option_changes_what_is_learnt(option):
    value, context = CHANGES[option]
    algorithm = algorithm_with(option)
    options = {"hidden": (8,), "critic_hidden": (8,), "batch_size": 120, **context}
    default = algorithm(Random, **options)
    assert getattr(default.config, option) != value
    changed = algorithm(Random, **{**options, option: value})
    assert parameters(changed.learn(200)) != parameters(default.learn(200))


METRIC = [2.0] * 52
# Argument of a value: the option, two values, and options without which it would mean nothing.
VALUES = {
    "FixedDamping.value": ("damping", 0.1, FixedDamping(1.0), {}),
    "FixedDamping.metric": (
        "damping", FixedDamping(0.1), FixedDamping(0.1, METRIC), {"preconditioner": "none"},
    ),
    "TraceDamping.factor": ("damping", TraceDamping(0.1), TraceDamping(1.0), {}),
    "AdaptiveDamping.initial": ("damping", AdaptiveDamping(0.1), AdaptiveDamping(1.0), {}),
    "AdaptiveDamping.low": ("damping", AdaptiveDamping(), AdaptiveDamping(low=0.09), {}),
    "AdaptiveDamping.high": (
        "damping", AdaptiveDamping(), AdaptiveDamping(high=0.1),
        {"max_kl": 5.0, **WITH_CG},
    ),
    "AdaptiveDamping.metric": (
        "damping", AdaptiveDamping(), AdaptiveDamping(metric=METRIC),
        {"preconditioner": "none"},
    ),
    "ConjugateGradient.iterations": ("solver", "cg", ConjugateGradient(1), WITH_CG),
    "ConjugateGradient.rtol": ("solver", "cg", ConjugateGradient(rtol=0.9), WITH_CG),
    "ConjugateGradient.atol": ("solver", "cg", ConjugateGradient(atol=1e9), WITH_CG),
    "ConjugateGradient.stop": ("solver", "cg", ConjugateGradient(stop=Progress(0.1)), WITH_CG),
    "ConjugateGradient.warm_start": ("solver", "cg", ConjugateGradient(warm_start=True), WITH_CG),
    "ConjugateGradient.last_residual": (
        "solver", ConjugateGradient(1), ConjugateGradient(1, last_residual=False), WITH_CG,
    ),
    "ConjugateGradient.or_direct": (
        "solver", ConjugateGradient(200), ConjugateGradient(200, or_direct=True), WITH_CG,
    ),
    "Progress.tolerance": (
        "solver", ConjugateGradient(stop=Progress(1e-6)), ConjugateGradient(stop=Progress(0.1)),
        WITH_CG,
    ),
    "Progress.window": (
        "solver", ConjugateGradient(stop=Progress(0.05)),
        ConjugateGradient(stop=Progress(0.05, window=1)), WITH_CG,
    ),
    "KFac.every": ("preconditioner", "kfac", KFac(4), {"solver": "cg"}),
    "KFac.all_columns": ("preconditioner", "kfac", KFac(all_columns=True), {"solver": "cg"}),
    "Subsample.every": (
        "preconditioner", "subsample", Subsample(3), {"solver": "cg", "cg_iterations": 2},
    ),
    "Subsample.iterations": (
        "preconditioner", "subsample", Subsample(iterations=1),
        {"solver": "cg", "cg_iterations": 2},
    ),
    "LineSearch.shrink": (
        "line_search", LineSearch(), LineSearch(shrink=0.3), WITH_BACKTRACKING
    ),
    "LineSearch.max_backtracks": (
        "line_search", LineSearch(), LineSearch(max_backtracks=1), WITH_BACKTRACKING,
    ),
    "LineSearch.accept_ratio": (
        "line_search", LineSearch(), LineSearch(accept_ratio=0.95), WITH_BACKTRACKING,
    ),
}  # fmt: skip


def test_every_argument_of_every_value_is_tested():
    arguments = {
        f"{c.__name__}.{name}" for c in values.CLASSES.values() for name in values._fields(c)
    }
    assert arguments == VALUES.keys()


@pytest.mark.parametrize("argument", VALUES)
def test_every_argument_of_a_value_changes_what_is_learnt(argument):
    option, value, other, context = VALUES[argument]
    options = {"hidden": (8,), "critic_hidden": (8,), "batch_size": 120, **context}
    first, second, spelled = (
        parameters(natgrad.TRPO(Random, **{**options, option: v}).learn(200))
        for v in (value, other, values.text_of(other))
    )
    assert first != second
    assert second == spelled


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("LineSearch()", LineSearch()),
        ("LineSearch(0.5, max_backtracks = 3)", LineSearch(0.5, 3)),
        (" AdaptiveDamping(1e-1, low=+1e-4)\n", AdaptiveDamping(0.1, 1e-4)),
        ("FixedDamping(0.5, metric=[1, 2.5])", FixedDamping(0.5, [1, 2.5])),
        ("FixedDamping(metric=None)", FixedDamping()),
        (
            "ConjugateGradient(30, stop=Progress(0.05, window=2), warm_start=True)",
            ConjugateGradient(30, stop=Progress(0.05, 2), warm_start=True),
        ),
    ],
)
def test_a_value_is_read_from_the_text_of_its_constructor(text, value):
    assert values.parse(text) == value
    assert values.parse(values.text_of(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not the constructor of one of FixedDamping, TraceDamping, AdaptiveDamping, Conj"),
        ("auto", "is not the constructor"),
        ("LineSearch", "is not the constructor"),
        ("LineSearch(", "is not the constructor"),
        ("LineSearch(); LineSearch()", "is not the constructor"),
        ("LineSearch()\0", "is not the constructor"),
        ("(" * 10_000, "is not the constructor"),
        ("-" * 100_000 + "1", "is not the constructor"),
        ("Search()", "Search is unknown; known are FixedDamping, TraceDamping"),
        ("natgrad.LineSearch()", "natgrad.LineSearch is unknown"),
        ("print(1)", "print is unknown"),
        ("LineSearch(shrink=print(1))", "print is unknown"),
        ("LineSearch(__import__('os').getpid())", "is unknown"),
        ("LineSearch(1 + 1)", "LineSearch: 1 + 1 is not a literal"),
        ("LineSearch(x)", "x is not a literal"),
        ("LineSearch(*[0.5])", "is not a literal"),
        ("LineSearch(**{'shrink': 0.5})", "has other arguments than LineSearch(shrink=0.8, "),
        ("LineSearch(shrnk=0.5)", "has other arguments than LineSearch(shrink=0.8, max_back"),
        ("LineSearch('0.5')", "has other arguments"),
        ("LineSearch(0.5, 2.5)", "has other arguments"),
        ("LineSearch(0.5, shrink=0.5)", "has other arguments"),
        ("LineSearch(1, 2, 3, 4)", "has other arguments"),
        ("LineSearch(1.0)", "LineSearch: shrink: want float, 0 < shrink < 1, got 1.0"),
        ("ConjugateGradient(stop=Progress(0))", "ConjugateGradient: Progress: tolerance: want"),
        ("ConjugateGradient(stop=LineSearch())", "has other arguments"),
    ],
)  # fmt: skip
def test_text_that_is_no_value_is_refused_and_never_run(text, message, capsys):
    with pytest.raises(ValueError, match=re.escape(message)):
        values.parse(text)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("env", ["CartPole-v1", Random])
def test_processes_change_nothing_that_is_learnt(env):
    agents = [
        natgrad.TRPO(env, **SMALL, n_envs=2, vectorization=vectorization).learn(192)
        for vectorization in ("sync", "async")
    ]
    processes = [getattr(agent._environments._vector, "processes", []) for agent in agents]
    assert [len(p) for p in processes] == [0, 2]
    assert parameters(agents[0]) == parameters(agents[1])
    agents[1].close()


def test_environment_options_reach_the_environment():
    long, short = (
        natgrad.TRPO("CartPole-v1", **SMALL, env_options=options).learn(128)
        for options in ({}, {"max_episode_steps": 4})
    )
    assert max(episode.length for episode in long.recent_episodes) > 4
    assert max(episode.length for episode in short.recent_episodes) == 4
    assert short.make_env().spec.max_episode_steps == 4
    assert short.make_env(max_episode_steps=6).spec.max_episode_steps == 6


def test_options_can_be_given_as_one_object_and_are_kept():
    config = TRPOConfig(**SMALL, max_kl=0.02)
    agent = natgrad.TRPO("CartPole-v1", config)
    assert agent.config is config
    assert TRPOConfig.from_options(config.to_json()) == config
    for wrong in (NPGConfig(), REINFORCEConfig()):
        with pytest.raises(TypeError, match=f"config is a {type(wrong).__name__} .*; wanted"):
            natgrad.TRPO("CartPole-v1", wrong)
    with pytest.raises(TypeError, match=r"with 1 options besides; wanted either a TRPOConfig or"):
        natgrad.TRPO("CartPole-v1", config, seed=3)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("batchsize", "batch_size"),
        ("max_KL", "max_kl"),
        ("n_env", "n_envs"),
        ("lambda", "gae_lambda"),
        ("zzz", None),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_one(given, meant):
    hint = f"did you mean '{meant}'" if meant else "wanted one of seed, n_envs"
    with pytest.raises(ValueError, match=f"'{given}' is not an option of TRPO; {hint}"):
        natgrad.TRPO("CartPole-v1", **{given: 1})


def test_an_option_of_another_algorithm_is_unknown():
    with pytest.raises(ValueError, match="'learning_rate' is not an option of TRPO"):
        natgrad.TRPO("CartPole-v1", learning_rate=0.1)
    with pytest.raises(ValueError, match="'max_kl' is not an option of REINFORCE"):
        natgrad.REINFORCE("CartPole-v1", max_kl=0.1)


@pytest.mark.parametrize(
    ("option", "value", "error", "wanted"),
    [
        ("seed", -1, ValueError, "an integer >= 0"),
        ("seed", 1.5, ValueError, "an integer >= 0"),
        ("seed", None, TypeError, "an integer >= 0"),
        ("n_envs", 0, ValueError, "an integer >= 1"),
        ("n_envs", True, ValueError, "an integer >= 1"),
        ("batch_size", "2048", TypeError, "an integer >= 2"),
        ("batch_size", 1, ValueError, "an integer >= 2"),
        ("gamma", 1.01, ValueError, "a number >= 0 and <= 1"),
        ("gamma", float("nan"), ValueError, "a number >= 0 and <= 1"),
        ("max_kl", 0, ValueError, "a number > 0"),
        ("max_kl", float("inf"), ValueError, "a number > 0"),
        ("damping", -1e-9, ValueError, "a number >= 0, FixedDamping(...), TraceDamping(...) or A"),
        ("damping", "auto", ValueError, "a number >= 0, FixedDamping(...)"),
        ("damping", "0.1", ValueError, "a number >= 0, FixedDamping(...)"),
        ("damping", LineSearch(), TypeError, "a number >= 0, FixedDamping(...)"),
        ("damping", "LineSearch()", TypeError, "a number >= 0, FixedDamping(...)"),
        ("solver", "dense", ValueError, "one of auto, cg, direct, ConjugateGradient(...)"),
        ("solver", 3, TypeError, "one of auto, cg, direct, ConjugateGradient(...)"),
        ("preconditioner", "nystrom", ValueError, "one of none, auto, kfac, subsample, KFac(...)"),
        ("cg_iterations", 0, ValueError, "an integer >= 1"),
        ("line_search", None, TypeError, "LineSearch(...)"),
        ("line_search", "LineSearch(1.0)", ValueError, "LineSearch(...) (LineSearch: shrink: wan"),
        ("hidden", 64, TypeError, "a sequence of integers"),
        ("hidden", "64", TypeError, "a sequence of integers"),
        ("hidden", (64, 0), ValueError, "an integer >= 1"),
        ("hidden", (64, "a"), TypeError, "an integer >= 1"),
        ("activation", "sigmoid", ValueError, "one of tanh, relu, elu, silu, gelu, identity"),
        ("dtype", "float16", ValueError, "one of float32, float64"),
        ("critic", None, ValueError, "one of gauss_newton, adam"),
        ("normalize_observations", 1, TypeError, "True or False"),
        ("env_options", [1], TypeError, "a mapping of names to values"),
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_the_option(option, value, error, wanted):
    message = re.escape(f"{option} is ") + ".*" + re.escape(f"; wanted {wanted}")
    with pytest.raises(error, match=message):
        natgrad.TRPO("CartPole-v1", **{option: value})


def test_a_batch_has_at_least_one_step_of_every_environment():
    with pytest.raises(ValueError, match="batch_size is 4; wanted at least n_envs = 5"):
        natgrad.TRPO("CartPole-v1", batch_size=4, n_envs=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cg_iterations": 5, "solver": ConjugateGradient(7)}, "cg_iterations: want it left out"),
        ({"damping": FixedDamping(0.1, [1.0]), "preconditioner": "kfac"}, "preconditioner: want n"),
        (
            {"damping": FixedDamping(0.1, [1.0]), "preconditioner": "none", "solver": "direct"},
            "sol",
        ),
    ],
)
def test_options_that_make_no_sense_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TRPOConfig(**options)


def test_the_log_says_how_the_system_was_solved():
    options = {**SMALL, **WITH_CG}
    solver = ConjugateGradient(stop=Progress(0.05))
    logs = history(natgrad.TRPO("CartPole-v1", **{**options, "solver": solver}), 256)
    assert {log["train/cg_status"] for log in logs} == {"SLOW_PROGRESS"}
    assert all(log["train/cg_products"] == log["train/cg_iterations"] < 10 for log in logs)
    assert all(log["train/damping"] == 0.1 for log in logs)
    assert all(np.isfinite(log["train/reduction_ratio"]) for log in logs)
    options |= {"damping": AdaptiveDamping(), "solver": ConjugateGradient(warm_start=True)}
    adaptive = natgrad.TRPO("CartPole-v1", **options)
    logs = history(adaptive, 256)
    assert len({log["train/damping"] for log in logs}) > 1
    assert all(log["train/cg_products"] > log["train/cg_iterations"] for log in logs[1:])


def test_every_option_has_a_help_text_and_a_group():
    for config in CONFIGS:
        for field in dataclasses.fields(config):
            assert len(field.metadata["help"]) > 5, field.name
            assert field.metadata["group"], field.name
