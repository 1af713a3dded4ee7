"""The critic: predictions of the oracle's network, and fits that lower the error or do nothing."""

import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS, DTYPES, id_of, relative_error

from natgrad import _core as core

FITS = {
    "Gauss-Newton": lambda: core.GaussNewtonFit(),
    "Adam": lambda: core.AdamFit(epochs=20, learning_rate=3e-3),
}
every_fit = pytest.mark.parametrize("fit", FITS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def value_function(dtype="float64", hidden=(16, 16), inputs=2, **kwargs):
    return core.ValueFunction(inputs, hidden=hidden, dtype=dtype, **kwargs)


def smooth_problem(count=500, seed=0):
    observations = np.random.default_rng(seed).normal(size=(count, 2))
    return observations, np.sin(observations[:, 0]) + 0.5 * observations[:, 1] ** 2


def mean_squared_error(v, observations, targets):
    return np.mean((v.predict(observations).astype(float) - targets) ** 2)


@every_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (5,), (9, 7)])
def test_predictions_are_the_oracles_times_the_target_scale(exact, hidden, activation, dtype):
    rng = np.random.default_rng(0)
    v = value_function(dtype, hidden, inputs=3, activation=activation)
    theta = (0.5 * rng.normal(size=v.parameters.size)).astype(dtype)
    observations = rng.normal(size=(50, 3)).astype(dtype)
    v.parameters = theta
    mean, std = rng.normal(size=3), rng.uniform(0.5, 2, 3)
    network = oracle.Network((3, *hidden, 1), activation)
    plain = np.array([network(theta.astype(float), x.astype(float))[0] for x in observations])
    exact("value", dtype, v.predict(observations), plain)
    v.set_normalizer(mean, std, 1.2)
    v.target_scale = (0.7, 2.5)
    assert v.target_scale == (0.7, 2.5)
    network = oracle.Network((3, *hidden, 1), activation, mean, std, 1.2)
    scaled = [2.5 * network(theta.astype(float), x.astype(float))[0] + 0.7 for x in observations]
    exact("value", dtype, v.predict(observations), scaled)
    assert v.predict(observations).dtype == np.dtype(dtype)


def test_a_value_function_describes_itself_and_its_config_rebuilds_it():
    v = core.ValueFunction(
        3,
        hidden=(4, 5),
        activation="gelu",
        dtype="float64",
        seed=3,
        init="scaled",
        output_scale=0.5,
        fourier_features=6,
        fourier_bandwidth=2.0,
    )
    assert v.observation_size == 3
    assert v.hidden == (4, 5)
    assert v.activation == "gelu"
    assert v.dtype == np.float64
    assert v.target_scale == (0.0, 1.0)
    assert [block.shape for block in v.layout] == [(4, 6), (4,), (5, 4), (5,), (1, 5), (1,)]
    again = core.ValueFunction(**v.config)
    np.testing.assert_array_equal(again.parameters, v.parameters)
    obs = np.random.default_rng(0).normal(size=(7, 3))
    np.testing.assert_array_equal(again.predict(obs), v.predict(obs))
    assert np.shares_memory(v.parameters, v.parameters)
    assert v.predict(obs[0]).shape == ()
    assert v.predict(obs[0]) == v.predict(obs[:1])[0]


@every_fit
@every_dtype
def test_a_fit_lowers_the_error_on_a_smooth_target(fit, dtype):
    observations, targets = smooth_problem()
    v = value_function(dtype)
    fitter = FITS[fit]()
    before = mean_squared_error(v, observations, targets)
    for _ in range(10):
        report = fitter(v, observations, targets)
        assert report.accepted
        assert report.loss <= report.loss_before
        assert report.steps > 0
        assert report.seconds >= 0
        assert report.message
    after = mean_squared_error(v, observations, targets)
    assert after < 0.1 * before
    explained = 1 - np.var(targets - v.predict(observations)) / np.var(targets)
    assert explained > 0.9
    np.testing.assert_allclose(report.explained_variance, explained, atol=1e-4)


@every_fit
def test_reported_losses_are_those_before_and_after(fit):
    observations, targets = smooth_problem()
    v, fitter = value_function(), FITS[fit]()
    fitter(v, observations, targets)  # which also gives the critic its units
    before = mean_squared_error(v, observations, targets)
    explained = 1 - np.var(targets - v.predict(observations)) / np.var(targets)
    report = fitter(v, observations, targets)
    after = mean_squared_error(v, observations, targets)
    np.testing.assert_allclose(report.loss / report.loss_before, after / before, rtol=1e-6)
    np.testing.assert_allclose(report.explained_variance_before, explained, rtol=1e-6, atol=1e-9)


@every_fit
def test_targets_of_any_scale_are_fitted_equally_well(fit):
    observations, targets = smooth_problem()
    explained = []
    for scale, shift in ((1.0, 0.0), (1e4, 3e4), (1e-4, -2e-4)):
        v = value_function(seed=1)
        scaled = scale * targets + shift
        fitter = FITS[fit]()
        for _ in range(5):
            report = fitter(v, observations, scaled)
        explained.append(report.explained_variance)
    assert min(explained) > 0.5
    assert max(explained) - min(explained) < 1e-3


@every_fit
def test_the_first_fit_takes_its_scale_from_the_targets_and_later_ones_follow_slowly(fit):
    observations, targets = smooth_problem()
    v, fitter = value_function(), FITS[fit]()
    fitter(v, observations, targets)
    first = (targets.mean(), targets.std())
    np.testing.assert_allclose(v.target_scale, first, rtol=1e-12)
    fitter(v, observations, 3 * targets + 5)
    later = (3 * targets.mean() + 5, 3 * targets.std())
    for before, now, after in zip(first, v.target_scale, later, strict=True):
        assert before < now < after


@every_fit
def test_a_change_of_scale_alone_leaves_the_values_what_they_were(fit):
    """The loss before a fit is in the new scale, but of the values that the critic had."""
    observations, targets = smooth_problem()
    v, fitter = value_function(), FITS[fit]()
    fitter(v, observations, targets)
    changed = 10 * targets - 4
    error = mean_squared_error(v, observations, changed)
    report = fitter(v, observations, changed)
    np.testing.assert_allclose(report.loss_before, 0.5 * error / v.target_scale[1] ** 2, rtol=1e-9)


@every_fit
def test_a_fit_leaves_the_normalizer_alone(fit):
    observations, targets = smooth_problem()
    v = value_function()
    v.set_normalizer([0.1, 0.2], [1.5, 2.0], 5.0)
    FITS[fit]()(v, observations, targets)
    np.testing.assert_array_equal(v.normalizer[0], [0.1, 0.2])
    np.testing.assert_array_equal(v.normalizer[1], [1.5, 2.0])
    assert v.normalizer[2] == 5.0


def test_gauss_newton_solves_a_linear_problem_at_once():
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(200, 3))
    targets = observations @ [1.0, -2.0, 0.5] + 3.0
    v = value_function(hidden=(), inputs=3)
    fit = core.GaussNewtonFit(steps=20, cg_iterations=20, damping=1e-6, max_change=1e6)
    fit(v, observations, targets)
    np.testing.assert_allclose(v.predict(observations), targets, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1},
        {"cg_iterations": 1},
        {"damping": 10.0},
        {"max_change": 1e-3},
    ],
    ids=id_of,
)
def test_every_option_of_gauss_newton_changes_the_fit(options):
    assert_changes(core.GaussNewtonFit, options)


@pytest.mark.parametrize(
    "options",
    [{"epochs": 1}, {"minibatch_size": 16}, {"learning_rate": 1e-2}, {"seed": 1}],
    ids=id_of,
)
def test_every_option_of_adam_changes_the_fit(options):
    assert_changes(core.AdamFit, options)


def assert_changes(fit, options):
    observations, targets = smooth_problem()
    results = []
    for chosen in ({}, options):
        v = value_function()
        assert fit(**chosen)(v, observations, targets).accepted
        results.append(v.parameters.copy())
    assert relative_error(results[1], results[0]) > 1e-6


def test_a_small_max_change_keeps_the_predictions_close():
    observations, targets = smooth_problem()
    changes = []
    for max_change in (1e-4, 1e-1):
        v = value_function()
        v.target_scale = (float(targets.mean()), float(targets.std()))
        before = v.predict(observations)
        core.GaussNewtonFit(steps=1, max_change=max_change)(v, observations, targets)
        changes.append(np.sqrt(np.mean((v.predict(observations) - before) ** 2)))
    assert changes[0] < 0.5 * changes[1]


@every_fit
def test_a_fit_is_reproducible_to_the_bit_and_its_state_can_be_restored(fit):
    observations, targets = smooth_problem()

    def fitted(rounds):
        v, fitter = value_function(), FITS[fit]()
        for _ in range(rounds):
            fitter(v, observations, targets)
        return v, fitter

    v, _ = fitted(3)
    again, _ = fitted(3)
    assert v.parameters.tobytes() == again.parameters.tobytes()
    w, fitter = fitted(2)
    other = FITS[fit]()
    other.state = fitter.state
    other(w, observations, targets)
    assert w.parameters.tobytes() == v.parameters.tobytes()


@every_fit
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 250, 499])
@pytest.mark.parametrize("field", ["observations", "targets"])
def test_one_bad_number_is_refused_by_name_and_changes_nothing(fit, field, position, bad):
    data = dict(zip(("observations", "targets"), smooth_problem(), strict=True))
    v, fitter = value_function(), FITS[fit]()
    fitter(v, **data)
    before, state, scale = v.parameters.tobytes(), fitter.state.tobytes(), v.target_scale
    data[field][position] = bad
    with pytest.raises(ValueError, match=field):
        fitter(v, **data)
    assert v.parameters.tobytes() == before
    assert fitter.state.tobytes() == state
    assert v.target_scale == scale


@every_fit
def test_parameters_that_are_not_finite_are_not_fitted(fit):
    observations, targets = smooth_problem()
    v = value_function()
    v.parameters[5] = np.nan
    before = v.parameters.tobytes()
    report = FITS[fit]()(v, observations, targets)
    assert report.accepted is False
    assert report.message
    assert v.parameters.tobytes() == before


@every_fit
def test_one_row_and_constant_targets_are_no_trouble(fit):
    v = value_function()
    report = FITS[fit]()(v, np.ones((1, 2)), np.array([2.0]))
    assert np.all(np.isfinite(v.parameters))
    assert np.isfinite(report.loss)
    v = value_function()
    observations, _ = smooth_problem(50)
    report = FITS[fit]()(v, observations, np.full(50, 3.0))
    assert np.all(np.isfinite(v.parameters))
    assert report.loss < report.loss_before


@every_fit
def test_targets_beyond_reason_never_leave_a_broken_critic(fit):
    observations, targets = smooth_problem(50)
    v = value_function("float32")
    before = v.parameters.tobytes()
    report = FITS[fit]()(v, observations, 1e300 * targets)
    if report.accepted:
        assert np.all(np.isfinite(v.parameters))
        assert np.all(np.isfinite(v.predict(observations)))
    else:
        assert v.parameters.tobytes() == before


@every_fit
def test_the_callers_arrays_are_left_alone(fit):
    observations, targets = smooth_problem(50)
    kept = observations.copy(), targets.copy()
    FITS[fit]()(value_function(), observations, targets)
    np.testing.assert_array_equal(observations, kept[0])
    np.testing.assert_array_equal(targets, kept[1])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_both_ways_of_products_fit_the_same_function_but_for_rounding(dtype, activation):
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(900, 5)).astype(dtype)
    targets = np.tanh(observations @ rng.normal(size=5)) + 0.3 * rng.normal(size=900)
    fitted = {}
    for method in ("auto", "passes", "adjoints"):
        v = core.ValueFunction(5, hidden=(64, 64), activation=activation, dtype=dtype)
        report = core.GaussNewtonFit(method=method)(v, observations, targets)
        assert report.accepted
        fitted[method] = v.parameters.copy()
    difference = np.linalg.norm(fitted["adjoints"] - fitted["passes"])
    assert 0 < difference < {"float64": 1e-10, "float32": 1e-2}[dtype]
    np.testing.assert_array_equal(fitted["auto"], fitted["adjoints"])
    with pytest.raises(ValueError, match="method: want auto"):
        core.GaussNewtonFit(method="fast")
