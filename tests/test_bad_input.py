"""Misuse: every argument of every entry, an error that names it, and nothing changed."""

import copy
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import DISTRIBUTIONS, id_of, make_problem

from natgrad import _core as core

NOT_FINITE = [np.nan, np.inf, -np.inf]


def poisoned(array, bad, position=0):
    spoilt = np.array(array, dtype=float)
    spoilt.reshape(-1)[position] = bad
    return spoilt


class Setting:
    """One well-formed call of everything, from which each test spoils a single argument."""

    def __init__(self, distribution="gaussian", dtype="float64"):
        self.p = make_problem(distribution, dtype=dtype, count=12)
        p = self.p
        self.critic = core.ValueFunction(4, hidden=(5,), dtype=dtype)
        self.obs, self.act, self.adv = p.observations, p.actions, p.advantages

    def batch(self, **changes):
        fields = {
            "observations": self.obs,
            "actions": self.act,
            "advantages": self.adv,
            "log_probs": None,
        }
        return SimpleNamespace(**{**fields, **changes})

    def takes_observations(self):
        p, act, adv = self.p.core, self.act, self.adv
        return {
            "outputs": p.outputs,
            "sample": lambda obs: p.sample(obs, core.Rng(0)),
            "mode": p.mode,
            "log_prob": lambda obs: p.log_prob(obs, act),
            "entropy": p.entropy,
            "kl": lambda obs: p.kl(obs, p.parameters),
            "score": lambda obs: p.score(obs, act),
            "Fisher": lambda obs: core.Fisher(p, obs),
            "TrustRegionUpdate": lambda obs: core.TrustRegionUpdate()(
                p, self.batch(observations=obs)
            ),
            "PolicyGradientUpdate": lambda obs: core.PolicyGradientUpdate()(
                p, self.batch(observations=obs)
            ),
            "predict": self.critic.predict,
            "GaussNewtonFit": lambda obs: core.GaussNewtonFit()(self.critic, obs, adv),
            "AdamFit": lambda obs: core.AdamFit()(self.critic, obs, adv),
        }

    def takes_actions(self):
        p, obs = self.p.core, self.obs
        return {
            "log_prob": lambda act: p.log_prob(obs, act),
            "score": lambda act: p.score(obs, act),
            "Fisher": lambda act: core.Fisher(p, obs, kind="empirical", actions=act),
            "TrustRegionUpdate": lambda act: core.TrustRegionUpdate()(p, self.batch(actions=act)),
            "PolicyGradientUpdate": lambda act: core.PolicyGradientUpdate()(
                p, self.batch(actions=act)
            ),
            "Distribution.log_prob": lambda act: p.distribution.log_prob(p.outputs(obs), act),
            "Distribution.score": lambda act: p.distribution.score(p.outputs(obs), act),
        }

    def snapshot(self):
        return self.p.core.parameters.tobytes(), self.critic.parameters.tobytes()


OBSERVATION_CALLS = tuple(Setting().takes_observations())
ACTION_CALLS = tuple(Setting().takes_actions())

BAD_OBSERVATIONS = {
    "one column too many": (lambda o: np.hstack([o, o[:, :1]]), ValueError),
    "one column too few": (lambda o: o[:, 1:], ValueError),
    "three axes": (lambda o: o[None], ValueError),
    "a scalar": (lambda o: 1.0, ValueError),
    "no rows": (lambda o: o[:0], ValueError),
    "nothing": (lambda o: np.zeros((0, 0)), ValueError),
    "NaN": (lambda o: poisoned(o, np.nan, 0), ValueError),
    "infinity in the middle": (lambda o: poisoned(o, np.inf, 25), ValueError),
    "minus infinity at the end": (lambda o: poisoned(o, -np.inf, -1), ValueError),
    "strings": (lambda o: o.astype(str), TypeError),
    "complex": (lambda o: o.astype(complex), TypeError),
    "objects": (lambda o: o.astype(object), TypeError),
    "dates": (lambda o: o.astype("datetime64[s]"), TypeError),
    "none": (lambda o: None, TypeError),
    "ragged": (lambda o: [[1.0, 2.0], [1.0]], (TypeError, ValueError)),
}


@pytest.mark.parametrize("spoil", BAD_OBSERVATIONS)
@pytest.mark.parametrize("call", OBSERVATION_CALLS)
def test_bad_observations_are_refused_by_name(call, spoil):
    s = Setting()
    before = s.snapshot()
    make, error = BAD_OBSERVATIONS[spoil]
    with pytest.raises(error, match="observations"):
        s.takes_observations()[call](make(s.obs))
    assert s.snapshot() == before


@pytest.mark.parametrize("call", ["log_prob", "score", "Fisher", "TrustRegionUpdate"])
def test_a_different_number_of_observations_and_actions_is_refused(call):
    s = Setting()
    with pytest.raises(ValueError, match="actions"):
        s.takes_actions()[call](s.act[:-1])


def test_numbers_that_overflow_the_policys_dtype_do_not_become_infinite_unnoticed():
    s = Setting(dtype="float32")
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="observations"):
        s.p.core.outputs(np.full((3, 4), 1e300))


BAD_ACTIONS = {
    "categorical": {
        "out of range": (lambda a: a + 4, ValueError),
        "negative": (lambda a: a - 5, ValueError),
        "last one out of range": (lambda a: np.append(a[:-1], 4), ValueError),
        "enormous": (lambda a: a + 2**40, ValueError),
        "floats": (lambda a: a.astype(float), TypeError),
        "strings": (lambda a: a.astype(str), TypeError),
        "two axes": (lambda a: np.stack([a, a], axis=1), ValueError),
        "none": (lambda a: None, (TypeError, ValueError)),
    },
    "multi-categorical": {
        "first part out of range": (lambda a: a + np.array([3, 0]), ValueError),
        "second part out of range": (lambda a: np.tile([0, 2], (len(a), 1)), ValueError),
        "negative": (lambda a: a - 5, ValueError),
        "one axis": (lambda a: a[:, 0], ValueError),
        "too wide": (lambda a: np.hstack([a, a]), ValueError),
        "floats": (lambda a: a + 0.0, TypeError),
    },
    "bernoulli": {
        "two": (lambda a: np.full_like(a, 2), ValueError),
        "minus one": (lambda a: np.full_like(a, -1), ValueError),
        "too narrow": (lambda a: a[:, 1:], ValueError),
        "floats": (lambda a: a + 0.0, TypeError),
    },
    "gaussian": {
        "NaN": (lambda a: poisoned(a, np.nan, 0), ValueError),
        "infinity": (lambda a: poisoned(a, np.inf, 17), ValueError),
        "minus infinity at the end": (lambda a: poisoned(a, -np.inf, -1), ValueError),
        "too wide": (lambda a: np.hstack([a, a]), ValueError),
        "one axis": (lambda a: a[:, 0], ValueError),
        "three axes": (lambda a: a[None], ValueError),
        "strings": (lambda a: a.astype(str), TypeError),
        "complex": (lambda a: a + 0j, TypeError),
    },
}


@pytest.mark.parametrize(
    ("distribution", "spoil"), [(d, s) for d, bad in BAD_ACTIONS.items() for s in bad]
)
@pytest.mark.parametrize("call", ACTION_CALLS)
def test_bad_actions_are_refused_by_name(call, distribution, spoil):
    s = Setting(distribution)
    before = s.snapshot()
    make, error = BAD_ACTIONS[distribution][spoil]
    with pytest.raises(error, match="actions"):
        s.takes_actions()[call](make(s.act))
    assert s.snapshot() == before


@pytest.mark.parametrize("update", ["TrustRegionUpdate", "PolicyGradientUpdate"])
@pytest.mark.parametrize("field", ["advantages", "log_probs"])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda a: a[:-1], ValueError),
        (lambda a: a[:, None], ValueError),
        (lambda a: a[:0], ValueError),
        (lambda a: a.astype(str), TypeError),
        (lambda a: a.astype(complex), TypeError),
        (lambda a: poisoned(a, np.nan, 5), ValueError),
    ],
    ids=["too short", "two axes", "empty", "strings", "complex", "NaN"],
)
def test_bad_advantages_and_log_probs_are_refused_by_name(update, field, spoil, error):
    s = Setting()
    before = s.snapshot()
    with pytest.raises(error, match=field):
        getattr(core, update)()(s.p.core, s.batch(**{field: spoil(s.adv)}))
    assert s.snapshot() == before


@pytest.mark.parametrize("update", ["TrustRegionUpdate", "PolicyGradientUpdate"])
@pytest.mark.parametrize("field", ["observations", "actions", "advantages"])
def test_a_batch_without_a_field_is_refused_by_name(update, field):
    s = Setting()
    batch = s.batch()
    delattr(batch, field)
    with pytest.raises((AttributeError, TypeError), match=field):
        getattr(core, update)()(s.p.core, batch)


@pytest.mark.parametrize("update", ["TrustRegionUpdate", "PolicyGradientUpdate"])
def test_an_empty_batch_is_refused(update):
    s = Setting()
    batch = s.batch(observations=s.obs[:0], actions=s.act[:0], advantages=s.adv[:0])
    with pytest.raises(ValueError, match="observations"):
        getattr(core, update)()(s.p.core, batch)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_batch_of_one_row_is_fine(distribution):
    s = Setting(distribution)
    batch = s.batch(observations=s.obs[:1], actions=s.act[:1], advantages=s.adv[:1])
    assert core.TrustRegionUpdate()(s.p.core, batch).accepted


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda w: w[:-1], ValueError),
        (lambda w: w[:, None], ValueError),
        (lambda w: poisoned(w, np.nan, 3), ValueError),
        (lambda w: poisoned(w, np.inf, -1), ValueError),
        (lambda w: w.astype(str), TypeError),
        (lambda w: w.astype(complex), TypeError),
    ],
    ids=["too short", "two axes", "NaN", "infinity", "strings", "complex"],
)
@pytest.mark.parametrize("call", ["Fisher", "score"])
def test_bad_weights_are_refused_by_name(call, spoil, error):
    s = Setting()
    entry = {
        "Fisher": lambda w: core.Fisher(s.p.core, s.obs, weights=w),
        "score": lambda w: s.p.core.score(s.obs, s.act, w),
    }[call]
    with pytest.raises(error, match="weights"):
        entry(spoil(s.p.weights))


def test_weights_of_a_fisher_must_not_be_negative():
    s = Setting()
    with pytest.raises(ValueError, match="weights"):
        core.Fisher(s.p.core, s.obs, weights=-s.p.weights)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda t: t[:-1], ValueError),
        (lambda t: np.append(t, 0.0), ValueError),
        (lambda t: t[None], ValueError),
        (lambda t: 1.0, ValueError),
        (lambda t: t.astype(str), TypeError),
        (lambda t: t.astype(complex), TypeError),
    ],
    ids=["too short", "too long", "two axes", "scalar", "strings", "complex"],
)
def test_bad_parameter_vectors_are_refused_by_name(spoil, error):
    s = Setting()
    before = s.snapshot()
    with pytest.raises(error, match="parameters"):
        s.p.core.parameters = spoil(s.p.theta)
    with pytest.raises(error, match="old_parameters"):
        s.p.core.kl(s.obs, spoil(s.p.theta))
    with pytest.raises(error, match="parameters"):
        s.critic.parameters = spoil(s.critic.parameters)
    assert s.snapshot() == before


@pytest.mark.parametrize("what", ["policy", "critic"])
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([0.0] * 3, [1.0] * 4, 10.0), "mean"),
        (([0.0] * 4, [1.0] * 5, 10.0), "std"),
        (([np.nan] * 4, [1.0] * 4, 10.0), "mean"),
        (([0.0] * 4, [1.0, np.inf, 1.0, 1.0], 10.0), "std"),
        (([0.0] * 4, [1.0, 1.0, 1.0, 0.0], 10.0), "std"),
        (([0.0] * 4, [1.0, -1.0, 1.0, 1.0], 10.0), "std"),
        (([0.0] * 4, [1.0] * 4, 0.0), "clip"),
        (([0.0] * 4, [1.0] * 4, -1.0), "clip"),
        (([0.0] * 4, [1.0] * 4, np.nan), "clip"),
    ],
    ids=id_of,
)
def test_bad_normalizers_are_refused_by_name_and_the_old_one_stays(what, arguments, name):
    s = Setting()
    target = s.p.core if what == "policy" else s.critic
    before = [np.array(part) for part in target.normalizer]
    with pytest.raises(ValueError, match=name):
        target.set_normalizer(*arguments)
    for part, kept in zip(target.normalizer, before, strict=True):
        np.testing.assert_array_equal(part, kept)


GOOD_POLICY = {"observation_size": 3, "distribution": core.Categorical(2)}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("observation_size", 0, ValueError),
        ("observation_size", -1, (ValueError, TypeError)),
        ("hidden", (0,), ValueError),
        ("hidden", (4, -4), (ValueError, TypeError)),
        ("activation", "softplus", ValueError),
        ("dtype", "float16", ValueError),
        ("dtype", "int32", ValueError),
        ("init", "zeros", ValueError),
        ("output_scale", np.nan, ValueError),
        ("log_std_init", np.inf, ValueError),
        ("fourier_features", -1, (ValueError, TypeError)),
        ("fourier_bandwidth", 0.0, ValueError),
        ("fourier_bandwidth", np.nan, ValueError),
    ],
    ids=id_of,
)
def test_bad_options_of_a_network_are_refused_by_name(name, value, error):
    options = {name: value}
    if name == "fourier_bandwidth":
        options["fourier_features"] = 4
    with pytest.raises(error, match=name):
        core.Policy(**{**GOOD_POLICY, **options})
    if name != "log_std_init":
        with pytest.raises(error, match=name):
            core.ValueFunction(**{"observation_size": 3, **options})


def test_unknown_options_are_refused_by_name():
    for make in (
        lambda: core.Policy(**GOOD_POLICY, layers=3),
        lambda: core.TrustRegionUpdate(layers=3),
        lambda: core.LineSearch(layers=3),
        lambda: core.conjugate_gradient(np.eye(2), np.ones(2), layers=3),
    ):
        with pytest.raises(TypeError, match="layers"):
            make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: core.Categorical(0), "n"),
        (lambda: core.DiagonalGaussian(0), "n"),
        (lambda: core.Bernoulli(0), "n"),
        (lambda: core.MultiCategorical(()), "sizes"),
        (lambda: core.MultiCategorical((3, 0)), "sizes"),
        (lambda: core.DiagonalGaussian(2**62), "n"),
        (lambda: core.MultiCategorical([2**62] * 4), "sizes"),
        (lambda: core.Beta(0), "n"),
        (lambda: core.SquashedGaussian(0), "n"),
    ],
    ids=[
        "Categorical(0)",
        "Gaussian(0)",
        "Bernoulli(0)",
        "()",
        "(3, 0)",
        "Gaussian(2**62)",
        "(2**62, ...)",
        "Beta(0)",
        "Squashed(0)",
    ],
)
def test_empty_and_uncountable_distributions_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        make()


@pytest.mark.parametrize(
    ("bounds", "error", "complaint"),
    [
        ({"low": [0.0, 0.0, 0.0]}, ValueError, r"low: want a number or shape \(2,\), got \(3,\)"),
        ({"high": [[1.0, 2.0]]}, ValueError, r"high: want a number or shape \(2,\)"),
        ({"low": np.nan}, ValueError, "low: want a finite number"),
        ({"high": np.inf}, ValueError, "high: want a finite number"),
        ({"low": 1.0}, ValueError, "high: want numbers above low, at a finite distance"),
        ({"low": [0.0, 3.0], "high": 2.0}, ValueError, "high: want numbers above low"),
        ({"low": -1e308, "high": 1e308}, ValueError, "at a finite distance"),
        ({"low": "a"}, TypeError, "low: want real numbers"),
        ({"high": None}, TypeError, "high: want real numbers"),
    ],
)
@pytest.mark.parametrize("make", [core.Beta, core.SquashedGaussian])
def test_bad_bounds_are_refused_by_name(make, bounds, error, complaint):
    with pytest.raises(error, match=complaint):
        make(2, **bounds)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_bad_outputs_are_refused_by_name_by_every_function_of_a_distribution(distribution):
    s = Setting(distribution)
    d, outputs, actions = s.p.core.distribution, s.p.core.outputs(s.obs), s.act
    calls = {
        "sample": lambda o: d.sample(o, core.Rng(0)),
        "mode": d.mode,
        "log_prob": lambda o: d.log_prob(o, actions),
        "entropy": d.entropy,
        "kl": lambda o: d.kl(outputs, o),
        "kl, old": lambda o: d.kl(o, outputs),
        "score": lambda o: d.score(o, actions),
        "fisher": d.fisher,
        "fisher_product": lambda o: d.fisher_product(o, outputs),
        "fisher_sqrt": d.fisher_sqrt,
    }
    for call in calls.values():
        for bad in (outputs[:, 1:], outputs[None], poisoned(outputs, np.nan, 3)):
            with pytest.raises(ValueError, match="outputs"):
                call(bad)
        with pytest.raises(TypeError, match="outputs"):
            call(outputs.astype(str))
    with pytest.raises(ValueError, match=r"\bu\b"):
        d.fisher_product(outputs, outputs[:, 1:])


@pytest.mark.parametrize(
    ("options", "name", "error"),
    [
        ({"damping": -1.0}, "damping", ValueError),
        ({"damping": np.nan}, "damping", ValueError),
        ({"damping": np.inf}, "damping", ValueError),
        ({"kind": "approximate"}, "kind", ValueError),
        ({"kind": "empirical"}, "actions", (ValueError, TypeError)),
        ({"fraction": 0.0}, "fraction", ValueError),
        ({"fraction": -0.5}, "fraction", ValueError),
        ({"fraction": 1.5}, "fraction", ValueError),
        ({"fraction": np.nan}, "fraction", ValueError),
    ],
    ids=id_of,
)
def test_bad_options_of_a_fisher_are_refused_by_name(options, name, error):
    s = Setting()
    with pytest.raises(error, match=name):
        core.Fisher(s.p.core, s.obs, **options)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda v: v[:-1], ValueError),
        (lambda v: v[None], ValueError),
        (lambda v: v.astype(str), TypeError),
        (lambda v: v.astype(complex), TypeError),
    ],
    ids=["too short", "two axes", "strings", "complex"],
)
def test_bad_vectors_are_refused_by_a_fisher(spoil, error):
    s = Setting()
    F = core.Fisher(s.p.core, s.obs)
    v = np.ones(s.p.theta.size)
    for product in (F.matvec, F.rmatvec, lambda w: F @ w):
        with pytest.raises(error, match=r"\bv\b"):
            product(spoil(v))


@pytest.mark.parametrize(
    ("arguments", "name", "error"),
    [
        ({"A": np.ones((3, 4))}, "A", ValueError),
        ({"A": np.ones(3)}, "A", ValueError),
        ({"A": np.eye(4)}, "A|b", ValueError),
        ({"A": "matrix"}, "A", TypeError),
        ({"A": None}, "A", TypeError),
        ({"A": np.eye(3).astype(complex)}, "A", TypeError),
        ({"A": poisoned(np.eye(3), np.nan)}, "A", ValueError),
        ({"A": lambda v: v[:-1]}, "A", ValueError),
        ({"A": lambda v: None}, "A", TypeError),
        ({"A": lambda v: v.astype(complex)}, "A", TypeError),
        ({"b": np.ones(0)}, "b", ValueError),
        ({"b": np.ones((3, 1))}, "b", ValueError),
        ({"b": np.array(["a", "b", "c"])}, "b", TypeError),
        ({"b": np.ones(3, dtype=complex)}, "b", TypeError),
        ({"b": np.array([1.0, np.nan, 1.0])}, "b", ValueError),
        ({"b": np.array([1.0, np.inf, 1.0])}, "b", ValueError),
        ({"x0": np.ones(4)}, "x0", ValueError),
        ({"x0": np.array([1.0, np.nan, 1.0])}, "x0", ValueError),
        ({"x0": np.array(["a", "b", "c"])}, "x0", TypeError),
        ({"damping": -0.1}, "damping", ValueError),
        ({"damping": np.nan}, "damping", ValueError),
        ({"rtol": -1.0}, "rtol", ValueError),
        ({"rtol": np.nan}, "rtol", ValueError),
        ({"atol": -1.0}, "atol", ValueError),
        ({"atol": np.nan}, "atol", ValueError),
        ({"max_iterations": -1}, "max_iterations", (ValueError, TypeError)),
        ({"preconditioner": np.ones((3, 4))}, "preconditioner", ValueError),
        ({"preconditioner": lambda r: r[:-1]}, "preconditioner", ValueError),
        ({"residual_replacement": -1}, "residual_replacement", (ValueError, TypeError)),
        ({"progress_tolerance": -1e-3}, "progress_tolerance", ValueError),
        ({"progress_tolerance": np.nan}, "progress_tolerance", ValueError),
        ({"progress_window": 0}, "progress_window", ValueError),
        ({"progress_window": 1.5}, "progress_window", TypeError),
        ({"scale_x0": "yes"}, "scale_x0", TypeError),
    ],
    ids=id_of,
)
def test_bad_arguments_of_conjugate_gradients_are_refused_by_name(arguments, name, error):
    good = {"A": np.eye(3), "b": np.ones(3)}
    with pytest.raises(error, match=rf"\b({name})\b"):
        core.conjugate_gradient(**{**good, **arguments})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shrink", 0.0),
        ("shrink", 1.0),
        ("shrink", -0.5),
        ("shrink", np.nan),
        ("max_backtracks", 0),
        ("max_backtracks", -1),
        ("accept_ratio", -0.1),
        ("accept_ratio", np.nan),
    ],
)
def test_bad_options_of_a_line_search_are_refused_by_name(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        core.LineSearch(**{name: value})
    with pytest.raises((ValueError, TypeError), match=name):
        core.backtracking_line_search(lambda f: (1.0, 0.0), 1.0, 1.0, **{name: value})


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_line_search_needs_a_positive_bound(value):
    with pytest.raises(ValueError, match="max_kl"):
        core.backtracking_line_search(lambda f: (1.0, 0.0), 1.0, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_kl", 0.0),
        ("max_kl", -0.01),
        ("max_kl", np.nan),
        ("max_kl", np.inf),
        ("damping", -0.1),
        ("damping", np.nan),
        ("damping", np.inf),
        ("cg_iterations", 0),
        ("cg_iterations", -3),
        ("fisher", "approximate"),
        ("curvature_fraction", 0.0),
        ("curvature_fraction", 1.01),
        ("curvature_fraction", np.nan),
        ("line_search", "backtracking"),
        ("kl_reduction", "max"),
        ("kl_direction", "both"),
        ("step_scale", 0.0),
        ("step_scale", np.inf),
        ("step_scale", "long"),
        ("step_scale", None),
        ("damping", "adaptive"),
        ("damping", None),
        ("solver", "lu"),
        ("solver", core.KFac()),
        ("preconditioner", "nystrom"),
        ("preconditioner", core.Progress()),
    ],
)
def test_bad_options_of_a_trust_region_update_are_refused_by_name(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        core.TrustRegionUpdate(**{name: value})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"initial": 0.0}, "initial"),
        ({"low": 0.2}, "initial"),
        ({"high": 0.05}, "initial"),
        ({"low": 0.2, "high": 0.1}, "high"),
    ],
    ids=id_of,
)
def test_a_damping_that_is_adapted_lies_within_its_bounds(options, name):
    with pytest.raises(ValueError, match=rf"{name}: want a number"):
        core.AdaptiveDamping(**options)


VALUES = [
    core.AdaptiveDamping(0.2, low=1e-3),
    core.AdaptiveDamping(metric=[1.0, 2.0]),
    core.FixedDamping(0.0),
    core.TraceDamping(3.0),
    core.Progress(window=5),
    core.ConjugateGradient(30, rtol=1e-4, stop=core.Progress(), warm_start=True),
    core.KFac(every=8),
    core.Subsample(every=3, iterations=2),
    core.LineSearch(shrink=0.5),
]


@pytest.mark.parametrize("value", VALUES, ids=id_of)
def test_a_value_is_its_text_its_pickle_and_its_copy(value):
    names = {name: getattr(core, name) for name in dir(core)} | {"array": np.array}
    for same in (
        eval(repr(value), names),
        pickle.loads(pickle.dumps(value)),
        copy.deepcopy(value),
        value.replace(),
    ):
        assert same == value
        assert hash(same) == hash(value)
        assert repr(same) == repr(value)
    assert all(value != other for other in VALUES if other is not value)
    with pytest.raises(TypeError):
        value.replace(colour="red")
    with pytest.raises(AttributeError):
        value.every = 1


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (core.FixedDamping, "value", -0.1),
        (core.FixedDamping, "value", np.inf),
        (core.FixedDamping, "metric", []),
        (core.FixedDamping, "metric", np.ones((2, 2))),
        (core.FixedDamping, "metric", [1.0, 0.0]),
        (core.FixedDamping, "metric", [1.0, -1.0]),
        (core.AdaptiveDamping, "metric", [1.0, np.nan]),
        (core.AdaptiveDamping, "metric", 1.0),
        (core.AdaptiveDamping, "low", 0.0),
        (core.AdaptiveDamping, "high", np.inf),
        (core.TraceDamping, "factor", -1.0),
        (core.TraceDamping, "factor", np.nan),
        (core.Progress, "tolerance", -1e-3),
        (core.Progress, "tolerance", np.inf),
        (core.Progress, "window", 0),
        (core.ConjugateGradient, "iterations", 0),
        (core.ConjugateGradient, "rtol", -1e-3),
        (core.ConjugateGradient, "rtol", np.nan),
        (core.ConjugateGradient, "atol", -1.0),
        (core.ConjugateGradient, "stop", 0.01),
        (core.ConjugateGradient, "warm_start", "yes"),
        (core.KFac, "every", 0),
        (core.Subsample, "every", 0),
        (core.Subsample, "iterations", 0),
    ],
    ids=id_of,
)
def test_bad_fields_of_a_value_are_refused_by_name(make, name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        make(**{name: value})


def test_a_metric_has_a_value_for_each_parameter_and_no_trace():
    p = make_problem()
    theta = p.core.parameters.tobytes()
    for size in (1, p.theta.size - 1, p.theta.size + 1):
        update = core.TrustRegionUpdate(damping=core.FixedDamping(metric=np.ones(size)))
        with pytest.raises(ValueError, match=rf"metric: want shape \({p.theta.size},\)"):
            update(p.core, p.batch)
    assert p.core.parameters.tobytes() == theta
    with pytest.raises(TypeError, match="metric"):
        core.TraceDamping(metric=np.ones(3))
    with pytest.raises(ValueError, match="preconditioner: want none beside a metric"):
        core.TrustRegionUpdate(
            damping=core.AdaptiveDamping(metric=np.ones(3)), preconditioner="kfac"
        )


def test_iterations_are_given_once():
    with pytest.raises(ValueError, match="cg_iterations: want it left out"):
        core.TrustRegionUpdate(cg_iterations=3, solver=core.ConjugateGradient(4))
    core.TrustRegionUpdate(cg_iterations=3, solver="cg")


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (core.PolicyGradientUpdate, "learning_rate", 0.0),
        (core.PolicyGradientUpdate, "learning_rate", -0.1),
        (core.PolicyGradientUpdate, "learning_rate", np.nan),
        (core.PolicyGradientUpdate, "optimizer", "lbfgs"),
        (core.GaussNewtonFit, "steps", 0),
        (core.GaussNewtonFit, "cg_iterations", 0),
        (core.GaussNewtonFit, "damping", -1.0),
        (core.GaussNewtonFit, "damping", np.nan),
        (core.GaussNewtonFit, "max_change", 0.0),
        (core.GaussNewtonFit, "max_change", np.nan),
        (core.AdamFit, "epochs", 0),
        (core.AdamFit, "minibatch_size", 0),
        (core.AdamFit, "learning_rate", 0.0),
        (core.AdamFit, "learning_rate", np.nan),
    ],
    ids=id_of,
)
def test_bad_options_of_the_other_updates_and_fits_are_refused_by_name(make, name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        make(**{name: value})


@pytest.mark.parametrize(
    "make",
    [
        core.PolicyGradientUpdate,
        core.GaussNewtonFit,
        core.AdamFit,
        core.TrustRegionUpdate,
        lambda: core.TrustRegionUpdate(damping=core.AdaptiveDamping()),
        lambda: core.TrustRegionUpdate(solver=core.ConjugateGradient(warm_start=True)),
    ],
    ids=["plain", "Gauss-Newton", "Adam", "trust region", "adaptive", "warm"],
)
@pytest.mark.parametrize(
    "bad", [[np.nan], np.ones((2, 2)), ["a"]], ids=["NaN", "two axes", "string"]
)
def test_a_bad_state_is_refused_by_name_and_the_old_one_stays(make, bad):
    target = make()
    before = target.state.tobytes()
    with pytest.raises((ValueError, TypeError), match="state"):
        target.state = bad
    assert target.state.tobytes() == before


@pytest.mark.parametrize("fit", [core.GaussNewtonFit, core.AdamFit])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda t: t[:-1], ValueError),
        (lambda t: t[:, None], ValueError),
        (lambda t: t.astype(str), TypeError),
        (lambda t: poisoned(t, np.nan, 4), ValueError),
    ],
    ids=["too short", "two axes", "strings", "NaN"],
)
def test_bad_targets_are_refused_by_name(fit, spoil, error):
    s = Setting()
    before = s.snapshot()
    with pytest.raises(error, match="targets"):
        fit()(s.critic, s.obs, spoil(s.adv))
    assert s.snapshot() == before


@pytest.mark.parametrize(
    "value", [(0.0, 0.0), (0.0, -1.0), (np.nan, 1.0), (0.0, np.inf), (1.0,), 1.0], ids=id_of
)
def test_a_bad_target_scale_is_refused_by_name_and_the_old_one_stays(value):
    v = core.ValueFunction(2)
    with pytest.raises((ValueError, TypeError), match="target_scale"):
        v.target_scale = value
    assert v.target_scale == (0.0, 1.0)


GOOD_GAE = {
    "rewards": np.ones((5, 2)),
    "values": np.ones((5, 2)),
    "next_values": np.ones((5, 2)),
    "terminated": np.zeros((5, 2), dtype=bool),
    "truncated": np.zeros((5, 2), dtype=bool),
    "valid": np.ones((5, 2), dtype=bool),
}


@pytest.mark.parametrize("name", GOOD_GAE)
@pytest.mark.parametrize("spoil", ["too short", "transposed", "one axis", "strings"])
def test_bad_arrays_of_gae_are_refused_by_name(name, spoil):
    good = GOOD_GAE[name]
    bad, error = {
        "too short": (good[:-1], ValueError),
        "transposed": (good.T, ValueError),
        "one axis": (good[:, 0], ValueError),
        "strings": (good.astype(str), TypeError),
    }[spoil]
    # The rewards set the shape: where they differ, it is the next array that does not fit.
    with pytest.raises(error, match="rewards" if name == "rewards" else rf"\b{name}\b"):
        core.gae(**{**GOOD_GAE, name: bad})


@pytest.mark.parametrize("name", ["rewards", "values", "next_values"])
@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("position", [0, 5, -1])
def test_numbers_of_gae_that_are_not_finite_are_refused_by_name(name, bad, position):
    with pytest.raises(ValueError, match=name):
        core.gae(**{**GOOD_GAE, name: poisoned(GOOD_GAE[name], bad, position)})


@pytest.mark.parametrize("name", ["gamma", "gae_lambda"])
@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
def test_discounts_outside_zero_to_one_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        core.gae(**GOOD_GAE, **{name: value})


def test_gae_refuses_an_empty_rollout():
    with pytest.raises(ValueError, match="rewards"):
        core.gae(*[np.zeros((0, 2))] * 3, *[np.zeros((0, 2), dtype=bool)] * 2)


def test_seeds_streams_counters_and_counts_outside_their_range_are_refused_by_name():
    for bad in (-1, 2**64, 1.5, "1", None):
        with pytest.raises((ValueError, TypeError), match="seed"):
            core.Rng(bad)
    for bad in (-1, 2**32, 1.5, "1", None):
        with pytest.raises((ValueError, TypeError), match="stream"):
            core.Rng(0, bad)
    rng = core.Rng(0)
    for bad in (-1, 2**64, 1.5, "1", None):
        with pytest.raises((ValueError, TypeError), match="counter"):
            rng.counter = bad
    assert rng.counter == 0
    for draw in (rng.uniform, rng.normal):
        with pytest.raises((ValueError, TypeError), match=r"\bn\b"):
            draw(-1)


@pytest.mark.parametrize("n", [0, -1])
def test_the_number_of_threads_must_be_positive(n):
    before = core.get_num_threads()
    with pytest.raises((ValueError, TypeError), match=r"\bn\b"):
        core.set_num_threads(n)
    assert core.get_num_threads() == before


def test_objects_of_the_wrong_class_are_refused():
    s = Setting()
    with pytest.raises(TypeError):
        core.Policy(3, "categorical")
    with pytest.raises(TypeError):
        core.Fisher(s.critic, s.obs)
    with pytest.raises(TypeError):
        core.TrustRegionUpdate()(s.critic, s.batch())
    with pytest.raises(TypeError):
        core.GaussNewtonFit()(s.p.core, s.obs, s.adv)
    with pytest.raises(TypeError):
        s.p.core.sample(s.obs, 3)


@pytest.mark.parametrize(
    "use",
    [
        "core.Policy.__new__(core.Policy).parameters",
        "core.Policy.__new__(core.Policy).outputs([[0.0]])",
        "core.Actor.__new__(core.Actor)(0)",
        "core.Actor.__new__(core.Actor).actions",
        "core.ValueFunction.__new__(core.ValueFunction).predict([[0.0]])",
        "core.Fisher.__new__(core.Fisher).to_dense()",
        "core.GaussNewtonFit.__new__(core.GaussNewtonFit).state",
        "core.AdamFit.__new__(core.AdamFit)(core.ValueFunction(1), [[0.0]], [0.0])",
        "core.PolicyGradientUpdate.__new__(core.PolicyGradientUpdate).state",
    ],
)
def test_an_object_that_was_never_initialised_raises_and_does_not_crash(use):
    """As in a subclass that uses itself before it calls super().__init__()."""
    program = f"""
from natgrad import _core as core
try:
    {use}
except Exception as error:
    print("refused")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"exit status {run.returncode}"
    assert run.stdout.strip() == "refused"


def test_the_abstract_distribution_cannot_be_made():
    with pytest.raises(TypeError):
        core.Distribution()


def test_a_message_says_what_was_given_and_what_is_wanted():
    s = Setting()
    with pytest.raises(ValueError, match="observations") as caught:
        s.p.core.outputs(np.zeros((7, 9)))
    assert "9" in str(caught.value)
    assert "4" in str(caught.value)
    with pytest.raises(ValueError, match="activation") as caught:
        core.Policy(**GOOD_POLICY, activation="softplus")
    assert "softplus" in str(caught.value)
    assert "tanh" in str(caught.value)
    with pytest.raises(ValueError, match="actions") as caught:
        s.p.core.log_prob(s.obs, poisoned(s.act, np.nan, 3 * 5 + 1))
    assert "5" in str(caught.value)  # the row


@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5", "9999"])
def test_a_bad_number_of_threads_in_the_environment_fails_at_import_by_name(value):
    run = subprocess.run(
        [sys.executable, "-c", "import natgrad"],
        env={**os.environ, "NATGRAD_NUM_THREADS": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert f"ImportError: NATGRAD_NUM_THREADS={value}: want an integer from 1" in run.stderr
