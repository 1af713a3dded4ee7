"""Processes that run out of memory or threads, or fork while the core is at work."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import natgrad
from natgrad import _core as core


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


# Prints what an update does to a policy, in up to 64 threads.
UPDATE = """
import resource, numpy as np, natgrad
natgrad.set_num_threads({threads})
rng = np.random.default_rng(0)
policy = natgrad.Policy(17, natgrad.DiagonalGaussian(6))
rows = rng.normal(size=(8192, 17)).astype(np.float32)
natgrad.set_num_threads(1)
actions, log_probs = policy.sample(rows, natgrad.Rng(0))
batch = natgrad.Batch(rows, actions, rng.normal(size=8192), log_probs)
natgrad.TrustRegionUpdate()(policy.copy(), batch)
natgrad.set_num_threads({threads})
if {limited}:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 120 * 2**20, resource.RLIM_INFINITY))
for _ in range(3):
    report = natgrad.TrustRegionUpdate()(policy, batch)
    assert report.accepted, report
print(policy.parameters.tobytes().hex())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_with_fewer_threads_than_wanted_results_are_the_same():
    """64 stacks of 8 MB do not fit in what is left, so most threads cannot be started."""
    assert run(UPDATE.format(threads=64, limited=True)) == run(
        UPDATE.format(threads=1, limited=False)
    )


FIT = """
import resource, numpy as np, natgrad
from natgrad import _core as core
natgrad.set_num_threads(1)
rng = np.random.default_rng(0)
rows, targets = rng.normal(size=(40000, 17)).astype(np.float32), 50 * rng.normal(size=40000)
for fit in (core.GaussNewtonFit(), core.AdamFit(1)):
    value = core.ValueFunction(17, (256, 256))
    fit(value, rows[:64], targets[:64])
    def everything():
        return value.parameters.tobytes(), value.target_scale, fit.state.tobytes(), \
            value.predict(rows[:5]).tobytes()
    before = everything()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 16 * 2**20, resource.RLIM_INFINITY))
    try:
        fit(value, rows, 3 * targets)
        raise SystemExit("there was enough memory")
    except MemoryError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert everything() == before
    assert message.startswith("cannot allocate ") and "MB; nothing has changed" in message, message
    fit(value, rows[:64], 3 * targets[:64])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_fit_without_enough_memory_changes_nothing_and_says_how_much_it_wanted():
    run(FIT)


def finished(child: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0] == child:
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.parametrize("what", ["product", "sample", "update", "fit"])
def test_a_process_may_fork_while_another_thread_is_inside_the_core(what):
    rng = np.random.default_rng(0)
    policy, value = natgrad.Policy(17, natgrad.DiagonalGaussian(6)), core.ValueFunction(17)
    rows = rng.normal(size=(2048, 17))
    actions, log_probs = policy.sample(rows, natgrad.Rng(0))
    batch = natgrad.Batch(rows, actions, rng.normal(size=2048), log_probs)
    fisher, update, fit = natgrad.Fisher(policy, rows), natgrad.TrustRegionUpdate(), core.AdamFit(1)
    v = rng.normal(size=policy.parameters.size)
    call = {
        "product": lambda: fisher @ v,
        "sample": lambda: policy.sample(rows, natgrad.Rng(0)),
        "update": lambda: update(policy, batch),
        "fit": lambda: fit(value, rows, batch.advantages),
    }[what]
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            call()

    thread = threading.Thread(target=work)
    thread.start()
    hung = 0
    for _ in range(6):
        time.sleep(0.02)
        child = os.fork()
        if child == 0:
            call()
            os._exit(0)
        hung += not finished(child, 10)
    stop.set()
    thread.join()
    assert hung == 0
