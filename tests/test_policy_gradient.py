"""The plain policy gradient."""

import numpy as np
import pytest
from conftest import make_problem
from updates import batch_of, unchanged

from natgrad import _core as core

Status = core.UpdateStatus


def test_the_plain_gradient_step_is_the_learning_rate_times_the_gradient():
    p = make_problem("gaussian", count=40)
    g = p.oracle.score(p.theta, p.observations, p.actions, p.advantages)
    report = core.PolicyGradientUpdate(learning_rate=0.05, optimizer="sgd")(p.core, batch_of(p))
    assert report.status == Status.ACCEPTED
    np.testing.assert_allclose(p.core.parameters, p.theta + 0.05 * g, rtol=1e-12)
    np.testing.assert_allclose(report.gradient_norm, np.linalg.norm(g), rtol=1e-12)
    np.testing.assert_allclose(report.step_norm, 0.05 * np.linalg.norm(g), rtol=1e-9)
    kl = p.oracle.kl(p.core.parameters, p.observations, p.theta).mean()
    np.testing.assert_allclose(report.kl, kl, rtol=1e-7)


def test_the_plain_gradient_can_normalise_the_advantages():
    p = make_problem("gaussian", count=40)
    standard = (p.advantages - p.advantages.mean()) / p.advantages.std()
    g = p.oracle.score(p.theta, p.observations, p.actions, standard)
    update = core.PolicyGradientUpdate(0.05, "sgd", normalize_advantages=True)
    update(p.core, batch_of(p))
    np.testing.assert_allclose(p.core.parameters, p.theta + 0.05 * g, rtol=1e-12)


def test_adam_is_kingma_and_bas():
    p = make_problem("gaussian", count=40)
    update = core.PolicyGradientUpdate(learning_rate=0.02)
    theta, m, v = p.theta.copy(), 0.0, 0.0
    for t in range(1, 6):
        g = p.oracle.score(theta, p.observations, p.actions, p.advantages)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta = theta + 0.02 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert update(p.core, batch_of(p)).accepted
        np.testing.assert_allclose(p.core.parameters, theta, rtol=1e-9)


def test_the_state_of_adam_can_be_saved_and_restored():
    p = make_problem("gaussian", count=40)
    first = core.PolicyGradientUpdate()
    for _ in range(3):
        first(p.core, batch_of(p))
    state, theta = first.state.copy(), p.core.parameters.copy()
    first(p.core, batch_of(p))
    want = p.core.parameters.tobytes()
    second = core.PolicyGradientUpdate()
    p.core.parameters = theta
    second(p.core, batch_of(p))
    assert p.core.parameters.tobytes() != want
    second = core.PolicyGradientUpdate()
    second.state = state
    p.core.parameters = theta
    second(p.core, batch_of(p))
    assert p.core.parameters.tobytes() == want


def test_a_refused_or_useless_batch_leaves_the_state_of_adam_alone():
    p = make_problem("gaussian", count=40)
    update = core.PolicyGradientUpdate()
    update(p.core, batch_of(p))
    state, theta = update.state.tobytes(), p.core.parameters.tobytes()
    with pytest.raises(ValueError, match="advantages"):
        update(p.core, batch_of(p, advantages=np.full(40, np.nan)))
    assert update(p.core, batch_of(p, advantages=np.zeros(40))).status == Status.ZERO_ADVANTAGES
    p.core.parameters[3] = np.nan
    assert update(p.core, batch_of(p)).status == Status.NON_FINITE
    assert update.state.tobytes() == state
    p.core.parameters[3] = np.frombuffer(theta)[3]
    unchanged(p, theta)


def test_a_plain_step_that_overflows_is_not_taken():
    p = make_problem("gaussian", count=40, dtype="float32")
    before = p.core.parameters.tobytes()
    report = core.PolicyGradientUpdate(1e300, "sgd")(p.core, batch_of(p))
    assert report.status == Status.NON_FINITE
    unchanged(p, before)
