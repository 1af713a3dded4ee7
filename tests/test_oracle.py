"""The oracle is checked too: derivatives by the complex step, densities against SciPy."""

import numpy as np
import oracle
import pytest
from scipy import stats

DISTRIBUTIONS = [
    oracle.Categorical(4),
    oracle.MultiCategorical((3, 2)),
    oracle.Bernoulli(3),
    oracle.DiagonalGaussian(2),
    oracle.DiagonalGaussian(2, state_dependent_std=True),
    oracle.SquashedGaussian(2, low=-2.0, high=0.5),
    oracle.Beta(2, low=-2.0, high=0.5),
]


@pytest.mark.parametrize("activation", oracle.ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (5,), (3, 4)])
def test_jacobian_written_by_hand_is_the_complex_step_derivative(activation, hidden):
    rng = np.random.default_rng(1)
    policy = oracle.Policy(3, oracle.DiagonalGaussian(2), hidden, activation)
    theta, x = rng.normal(size=policy.parameter_count), rng.normal(size=3)
    by_step = oracle.complex_step(lambda t: policy.output(t, x), theta)
    np.testing.assert_allclose(policy.jacobian(theta, x), by_step, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_score_is_the_complex_step_derivative_of_the_log_probability(distribution):
    rng = np.random.default_rng(2)
    outputs = rng.normal(size=distribution.parameter_size)
    for action in distribution.random_actions(rng, 5):
        by_step = oracle.complex_step(lambda o, a=action: distribution.log_prob(o, a), outputs)
        np.testing.assert_allclose(
            distribution.score(outputs, action), by_step, rtol=1e-13, atol=1e-14
        )


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_fisher_is_the_hessian_of_the_kl(distribution):
    rng = np.random.default_rng(3)
    outputs = rng.normal(size=distribution.parameter_size)
    k, h = len(outputs), 1e-4

    def gradient(o):
        return oracle.complex_step(lambda new: distribution.kl(outputs, new), o)

    hessian = np.array(
        [(gradient(outputs + h * e) - gradient(outputs - h * e)) / (2 * h) for e in np.eye(k)]
    )
    np.testing.assert_allclose(gradient(outputs), 0, atol=1e-14)
    np.testing.assert_allclose(distribution.fisher(outputs), hessian, rtol=0, atol=1e-6)


def test_densities_agree_with_scipy():
    rng = np.random.default_rng(4)
    logits, z = rng.normal(size=4), rng.normal(size=2)
    p = np.exp(logits) / np.exp(logits).sum()
    assert np.isclose(oracle.Categorical(4).log_prob(logits, 2), np.log(p[2]))
    assert np.isclose(oracle.Categorical(4).entropy(logits), stats.entropy(p))
    q = rng.dirichlet(np.ones(4))
    assert np.isclose(oracle.Categorical(4).kl(logits, np.log(q)), stats.entropy(p, q))
    assert np.isclose(
        oracle.Bernoulli(2).log_prob(z, (1, 0)),
        stats.bernoulli.logpmf([1, 0], 1 / (1 + np.exp(-z))).sum(),
    )
    assert np.isclose(
        oracle.MultiCategorical((2, 2)).log_prob(logits, (0, 1)),
        oracle.Categorical(2).log_prob(logits[:2], 0)
        + oracle.Categorical(2).log_prob(logits[2:], 1),
    )
    gaussian = oracle.DiagonalGaussian(2)
    mean, log_std = logits[:2], logits[2:]
    assert np.isclose(
        gaussian.log_prob(logits, z), stats.norm.logpdf(z, mean, np.exp(log_std)).sum()
    )
    assert np.isclose(gaussian.entropy(logits), stats.norm.entropy(mean, np.exp(log_std)).sum())
    a, b = 1 + np.log1p(np.exp(mean)), 1 + np.log1p(np.exp(log_std))
    beta = oracle.Beta(2, low=-2.0, high=0.5)
    between = -2.0 + 2.5 * (1 + np.tanh(z)) / 2
    scipy_beta = stats.beta(a, b, loc=-2.0, scale=2.5)
    assert np.isclose(beta.log_prob(logits, z), scipy_beta.logpdf(between).sum())
    assert np.isclose(beta.entropy(logits), scipy_beta.entropy().sum())


@pytest.mark.parametrize("distribution", [oracle.SquashedGaussian(1), oracle.Beta(1)], ids=repr)
def test_densities_between_bounds_have_mass_one_and_the_entropy_that_is_said(distribution):
    outputs = np.array([0.4, -0.3])

    u = np.linspace(-15, 15, 3001)  # in u all derivatives vanish at both ends
    log_p = np.array([distribution.log_prob(outputs, [x]) for x in u])
    mass = np.exp(log_p) * (1 - np.tanh(u) ** 2) * (u[1] - u[0])
    assert np.isclose(mass.sum(), 1, rtol=1e-10)
    assert np.isclose(-(mass @ log_p), distribution.entropy(outputs), rtol=1e-10)


def test_gae_with_lambda_one_is_the_discounted_return_minus_the_value():
    rng = np.random.default_rng(5)
    rewards, values = rng.normal(size=(6, 1)), rng.normal(size=(6, 1))
    next_values = np.vstack([values[1:], rng.normal(size=(1, 1))])
    no = np.zeros((6, 1), dtype=bool)
    _, returns = oracle.gae(rewards, values, next_values, no, no, 0.9, 1.0)
    want = sum(0.9**k * rewards[k, 0] for k in range(6)) + 0.9**6 * next_values[-1, 0]
    assert np.isclose(returns[0, 0], want)
