"""The same bits every time and for any number of threads; no lock held, no memory gained."""

import multiprocessing
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import DISTRIBUTIONS, make_problem

from natgrad import _core as core


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    threads = core.get_num_threads()
    yield
    core.set_num_threads(threads)


def everything(distribution, dtype, count=700, hidden=(64, 64), size=17):
    """The bytes of every quantity that the core computes for one problem."""
    p = make_problem(
        distribution,
        dtype=dtype,
        count=count,
        hidden=hidden,
        observation_size=size,
        normalized=True,
    )
    obs, act = p.observations, p.actions
    v = np.random.default_rng(0).normal(size=p.theta.size)
    F = core.Fisher(p.core, obs, weights=p.weights)
    empirical = core.Fisher(p.core, obs, kind="empirical", actions=act, fraction=0.3)
    g = p.core.score(obs, act, p.advantages)
    results = {
        "outputs": p.core.outputs(obs),
        "log_prob": p.core.log_prob(obs, act),
        "entropy": p.core.entropy(obs),
        "kl": p.core.kl(obs, p.old_theta),
        "score": g,
        "sample": p.core.sample(obs, core.Rng(3))[0],
        "F @ v": F @ v,
        "diagonal": F.diagonal(),
        "empirical F @ v": empirical @ v,
        "cg": core.conjugate_gradient(F, g, damping=0.1).x,
    }
    if p.theta.size < 1000:
        results["to_dense"] = F.to_dense()
        results["empirical to_dense"] = empirical.to_dense()
    report = core.TrustRegionUpdate()(p.core, p.batch)
    results["update"] = p.core.parameters
    results["report"] = np.array([report.kl, report.improvement, report.expected_improvement])
    results["trace"] = F.trace()
    adaptive = core.TrustRegionUpdate(
        damping=core.AdaptiveDamping(metric=np.linspace(0.5, 2.0, p.theta.size)),
        solver=core.ConjugateGradient(warm_start=True, stop=core.Progress(0.01)),
    )
    for _ in range(3):
        adaptive(p.core, p.batch)
    core.TrustRegionUpdate(damping=core.TraceDamping())(p.core, p.batch)
    results["damped updates"] = p.core.parameters
    results["their state"] = adaptive.state
    core.PolicyGradientUpdate()(p.core, p.batch)
    results["plain update"] = p.core.parameters
    critic = core.ValueFunction(size, hidden=hidden, dtype=dtype)
    core.GaussNewtonFit(steps=2)(critic, obs, p.advantages)
    results["Gauss-Newton"] = critic.parameters
    core.AdamFit(epochs=1)(critic, obs, p.advantages)
    results["Adam"] = critic.parameters
    return {name: np.array(value).tobytes() for name, value in results.items()}


def assert_same(got, want):
    different = [name for name in want if got[name] != want[name]]
    assert not different, f"different bits: {different}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_repeated_calls_give_the_same_bits(distribution, dtype):
    small = {"count": 150, "hidden": (9, 7), "size": 5}
    want = everything(distribution, dtype, **small)
    for _ in range(2):
        assert_same(everything(distribution, dtype, **small), want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("distribution", ["gaussian", "categorical"])
def test_any_number_of_threads_gives_the_same_bits(distribution, dtype):
    problems = [
        {},
        {"count": 97, "hidden": (13,), "size": 5},
        {"count": 2100, "hidden": (), "size": 5},
        {"count": 1, "hidden": (5,), "size": 3},
    ]
    for problem in problems:
        core.set_num_threads(1)
        want = everything(distribution, dtype, **problem)
        for threads in (2, 3, 8):
            core.set_num_threads(threads)
            assert core.get_num_threads() == threads
            assert_same(everything(distribution, dtype, **problem), want)


def test_results_do_not_depend_on_where_the_arrays_lie_in_memory():
    p = make_problem("gaussian", count=101, observation_size=5)
    want = core.Fisher(p.core, p.observations).to_dense().tobytes()
    for offset in range(1, 9):
        room = np.empty(p.observations.size + 16)
        moved = room[offset : offset + p.observations.size].reshape(p.observations.shape)
        moved[:] = p.observations
        assert core.Fisher(p.core, moved).to_dense().tobytes() == want


def test_another_process_computes_the_same_bits():
    program = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]);"
        "from test_determinism import everything;"
        "r = everything('gaussian', 'float32', count=150);"
        "print(hashlib.sha256(b''.join(r[k] for k in sorted(r))).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent)],
            env={**os.environ, "NATGRAD_NUM_THREADS": threads},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(digests) == 1


def levels():
    """The instruction set levels that this machine has."""
    program = "from natgrad import _core as c; print(c.show_config()['isa'])"
    found = []
    for name in ("baseline", "v3", "v4"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "NATGRAD_ISA": name},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode == 0:
            assert run.stdout.strip() == name
            found.append(name)
        else:
            assert "NATGRAD_ISA" in run.stderr
    return found


def test_every_instruction_set_level_agrees_with_the_oracle_and_with_any_number_of_threads():
    """A short form of the whole suite, which also passes under NATGRAD_ISA=<level>."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import test_determinism as t, test_fisher as f, test_policy as p;"
        "from conftest import Exactness;"
        "[test(Exactness(), 'two-layers', 'gaussian', activation, dtype)"
        " for test in (f.test_the_exact_fisher_equals_the_oracles,"
        " p.test_every_quantity_equals_the_oracles)"
        " for activation in ('tanh', 'gelu', 'elu') for dtype in p.DTYPES];"
        "t.test_any_number_of_threads_gives_the_same_bits('gaussian', 'float32')"
    )
    found = levels()
    assert "baseline" in found
    for name in found:
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent)],
            env={**os.environ, "NATGRAD_ISA": name},
            check=True,
        )


def test_an_unknown_instruction_set_level_is_refused_at_import_with_the_known_ones():
    run = subprocess.run(
        [sys.executable, "-c", "import natgrad"],
        env={**os.environ, "NATGRAD_ISA": "v9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "NATGRAD_ISA" in run.stderr
    assert "baseline" in run.stderr


def test_the_environment_variable_sets_the_number_of_threads():
    for threads in ("1", "3"):
        printed = subprocess.run(
            [sys.executable, "-c", "from natgrad import _core as c; print(c.get_num_threads())"],
            env={**os.environ, "NATGRAD_NUM_THREADS": threads},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert printed.strip() == threads


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
@pytest.mark.alone
def test_a_helper_that_was_woken_may_run_on_every_processor_again():
    core.set_num_threads(3)
    p = make_problem("gaussian", count=700)
    F = core.Fisher(p.core, p.observations)
    v, allowed = np.ones(F.shape[0]), os.sched_getaffinity(0)
    for _ in range(3):
        F @ v
        time.sleep(0.02)  # helpers park

    def places():
        return [os.sched_getaffinity(int(t.name)) for t in Path("/proc/self/task").iterdir()]

    F @ v  # wakes them, away from here
    deadline = time.monotonic() + 5
    while any(place != allowed for place in places()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert all(place == allowed for place in places())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_pool_of_threads_survives_a_fork():
    core.set_num_threads(3)
    p = make_problem("gaussian", count=700, observation_size=17, hidden=(64, 64))
    v = np.ones(p.theta.size)
    want = (core.Fisher(p.core, p.observations) @ v).tobytes()
    child = os.fork()
    if child == 0:
        same = (core.Fisher(p.core, p.observations) @ v).tobytes() == want
        os._exit(0 if same else 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert (core.Fisher(p.core, p.observations) @ v).tobytes() == want


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_during_an_update_of_another_thread_leaves_both_processes_working():
    core.set_num_threads(3)
    p = make_problem("gaussian", count=700, observation_size=17, hidden=(64, 64))
    F, v, stop = core.Fisher(p.core, p.observations), np.ones(p.theta.size), threading.Event()
    want, wrong = (F @ v).tobytes(), []

    def work():
        while not stop.is_set():
            if (F @ v).tobytes() != want:
                wrong.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:  # F may be in use in the parent's other thread: one of the child's own
                q = make_problem("gaussian", count=700, observation_size=17, hidden=(64, 64))
                mine = core.Fisher(q.core, q.observations)
                os._exit(0 if (mine @ v).tobytes() == want else 1)
            deadline = time.monotonic() + 20
            while not (done := os.waitpid(child, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    os.kill(child, 9)
                    os.waitpid(child, 0)
                    pytest.fail("the child hangs")
                time.sleep(0.005)
            assert os.waitstatus_to_exitcode(done[1]) == 0
    finally:
        stop.set()
        thread.join()
    assert not wrong


def product_digest(threads):
    """The bytes of one product, for another process."""
    core.set_num_threads(threads)
    p = make_problem("gaussian", count=700, observation_size=17, hidden=(64, 64))
    return (core.Fisher(p.core, p.observations) @ np.ones(p.theta.size)).tobytes()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_processes_compute_the_same_bits(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method}")
    want = product_digest(2)  # the pool is warm
    with multiprocessing.get_context(method).Pool(2) as workers:
        got = workers.map_async(product_digest, [1, 2, 3, 2]).get(timeout=60)
    assert set(got) == {want}
    assert product_digest(3) == want


@pytest.mark.alone
def test_another_thread_runs_during_an_update():
    p = make_problem(
        "gaussian", dtype="float32", count=20_000, observation_size=17, hidden=(64, 64)
    )
    update, batch = core.TrustRegionUpdate(), p.batch
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        begin = time.perf_counter()
        update(p.core, batch)
        end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    took = end - begin
    inside = [t for t in ticks if begin + 0.1 * took < t < end - 0.1 * took]
    assert len(inside) >= 3, f"{len(inside)} ticks in {took:.3f} s"


def test_updates_of_different_policies_may_run_at_the_same_time():
    def work(seed, results):
        p = make_problem("gaussian", count=300, seed=seed, hidden=(32,))
        for _ in range(5):
            core.TrustRegionUpdate()(p.core, p.batch)
        results[seed] = p.core.parameters.tobytes()

    one_by_one, together = {}, {}
    for seed in range(4):
        work(seed, one_by_one)
    threads = [threading.Thread(target=work, args=(seed, together)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == one_by_one


def test_one_policy_and_one_update_may_be_shared_by_threads():
    p = make_problem("gaussian", count=60)
    update, F, errors = core.TrustRegionUpdate(), core.Fisher(p.core, p.observations), []
    v = np.ones(p.theta.size)
    product = (F @ v).tobytes()

    def work():
        for _ in range(20):
            report = update(p.core, p.batch)
            if not (report.accepted and report.kl <= 0.01 and (F @ v).tobytes() == product):
                errors.append(report)
            p.core.outputs(p.observations)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert np.all(np.isfinite(p.core.parameters))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_hundred_updates_use_no_more_memory_than_twenty(dtype):
    p = make_problem("gaussian", dtype=dtype, count=500, observation_size=17, hidden=(32, 32))
    trust_region, plain = core.TrustRegionUpdate(), core.PolicyGradientUpdate()
    critic, fit = core.ValueFunction(17, hidden=(32, 32)), core.GaussNewtonFit(steps=1)

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def updates(count):
        for _ in range(count):
            p.core.parameters = p.theta
            trust_region(p.core, p.batch)
            plain(p.core, p.batch)
            fit(critic, p.observations, p.advantages)

    updates(20)
    before = resident()
    updates(200)
    assert resident() - before < 2**20
