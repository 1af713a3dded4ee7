"""The drop-in classes against their hosts: whole updates, and training end to end, in turn.

    pip install 'natgrad[sb3,tianshou,mujoco]' && python -m benchmarks.hosts.versus_hosts

17-64-64-6 tanh and 2048 observations, as for HalfCheetah-v5, with the hosts' defaults. Host and
drop-in get the same weights and the same rollout before each turn, so both make the same update;
that is checked before anything is timed. 'policy' is the update without a critic (tianshou's, which
requires one, has a critic of a single number); 'train()' and 'update' include the host's own
critic, which is the same code for both; 'learn()' collects too. One round times everybody once,
after a pause in which idle threads come to rest; figures are medians over rounds, and ratios are
medians of the rounds' ratios. 'Softplus' is a policy that the core cannot read.
"""

import copy
import functools
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from benchmarks import harness

with harness.needs("natgrad[sb3,tianshou,mujoco]"):
    import sb3_contrib
    import tianshou.algorithm
    import torch
    from stable_baselines3.common.logger import configure
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Batch
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from torch.distributions import Independent, Normal

    import natgrad.sb3
    import natgrad.tianshou

TASK, SIZES, ROWS = "HalfCheetah-v5", (17, 64, 64, 6), 2048

# One side of a comparison: goes back to the start, then runs.
Side = tuple[Callable[[], None], Callable[[], Any]]


def _weights(module: Any) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).double()


def _restore(module: Any, state: dict[str, Any]) -> Callable[[], None]:
    return lambda: module.load_state_dict(state)


def _agree(name: str, sides: dict[str, tuple[Side, Any]], tolerance: float) -> None:
    """Compares the steps of both sides from the same start; ends the program if they differ."""
    steps = []
    for (prepare, run), module in sides.values():
        prepare()
        before = _weights(module)
        run()
        steps.append(_weights(module) - before)
    error = float((steps[1] - steps[0]).norm() / steps[0].norm())
    print(f"{name}: the two steps differ by {error:.1e} of their length")
    if not error < tolerance:
        raise SystemExit("that is not the same update; no times are shown")


# sb3-contrib -------------------------------------------------------------------------------------


def sb3_models(
    critic_updates: int, iterations: int = 15, activation: Any = torch.nn.Tanh
) -> dict[str, Any]:
    """sb3-contrib's model and ours, with equal weights and the same full rollout buffer."""
    models: dict[str, Any] = {}
    for name, cls in (("host", sb3_contrib.TRPO), ("natgrad", natgrad.sb3.TRPO)):
        model = cls(
            "MlpPolicy",
            TASK,
            n_steps=ROWS,
            n_critic_updates=critic_updates,
            cg_max_steps=iterations,
            policy_kwargs={"activation_fn": activation},
            seed=0,
            device="cpu",
        )
        model.set_logger(configure(None, []))
        models[name] = model
    host = models["host"]
    _, callback = host._setup_learn(10 * ROWS, None)
    host.set_logger(configure(None, []))
    host.collect_rollouts(host.env, callback, host.rollout_buffer, ROWS)
    models["natgrad"].rollout_buffer = copy.deepcopy(host.rollout_buffer)
    models["natgrad"].policy.load_state_dict(host.policy.state_dict())
    return models


def sb3_train(
    critic_updates: int, iterations: int = 15, activation: Any = torch.nn.Tanh
) -> dict[str, tuple[Side, Any]]:
    """train() from the same start on the same rollout."""
    sides = {}
    for name, model in sb3_models(critic_updates, iterations, activation).items():
        start = copy.deepcopy(model.policy.state_dict())
        sides[name] = ((_restore(model.policy, start), model.train), model.policy)
    return sides


def sb3_learn(updates: int) -> dict[str, tuple[Side, Any]]:
    """learn() for some updates, from where the last turn stopped."""
    sides: dict[str, tuple[Side, Any]] = {}
    for name, model in sb3_models(10).items():

        def run(model: Any = model) -> None:
            model.learn(ROWS * updates, reset_num_timesteps=False)

        sides[name] = ((lambda: None, run), model.policy)
    return sides


# tianshou ----------------------------------------------------------------------------------------


class Number(torch.nn.Module):  # type: ignore[misc]
    """The smallest critic: one number."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1))

    def forward(self, observations: Any) -> Any:
        """(N,) equal values."""
        return self.value.expand(len(observations))


def tianshou_update(cls: Any, critic_iterations: int, damping: float = 0.1) -> tuple[Side, Any]:
    """One update of an algorithm on a fixed batch; 0 iterations: with a critic of one number."""
    torch.manual_seed(0)
    inputs, *hidden, outputs = SIZES

    def net() -> Any:
        return Net(state_shape=(inputs,), hidden_sizes=hidden, activation=torch.nn.Tanh)

    actor = ContinuousActorProbabilistic(
        preprocess_net=net(), action_shape=(outputs,), unbounded=True
    )
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=lambda loc_scale: Independent(Normal(*loc_scale), 1),
        action_space=spaces.Box(-1.0, 1.0, (outputs,), np.float32),
        action_scaling=False,
        action_bound_method=None,
    )
    algorithm = cls(
        policy=policy,
        critic=ContinuousCritic(preprocess_net=net()) if critic_iterations else Number(),
        optim=AdamOptimizerFactory(),
        optim_critic_iters=max(1, critic_iterations),
    )
    algorithm._damping = damping
    generator = torch.Generator().manual_seed(1)
    batch = Batch(
        obs=torch.randn(ROWS, inputs, generator=generator),
        adv=torch.randn(ROWS, generator=generator),
        returns=torch.randn(ROWS, generator=generator),
        info=Batch(),
    )
    with torch.no_grad():
        distribution = policy(batch).dist
        batch.act = distribution.mean + torch.randn(ROWS, outputs, generator=generator)
        batch.logp_old = distribution.log_prob(batch.act)
    start = copy.deepcopy(actor.state_dict())
    return (_restore(actor, start), lambda: algorithm._update_with_batch(batch, None, 1)), actor


def tianshou_sides(name: str, critic_iterations: int, damping: float = 0.1) -> dict[str, Any]:
    """tianshou's class and ours."""
    pair = {"host": getattr(tianshou.algorithm, name), "natgrad": getattr(natgrad.tianshou, name)}
    return {side: tianshou_update(cls, critic_iterations, damping) for side, cls in pair.items()}


# In turn -----------------------------------------------------------------------------------------


def turn(side: Side) -> float:
    """Seconds of one run from the start."""
    prepare, run = side
    prepare()
    return harness.timed(run, harness.PAUSE)


def main() -> None:
    """Checks, measures, prints a table."""
    parser = harness.parser(__doc__, rounds=15, threads=2, output=None)
    options = harness.parse(parser, {"rounds": 1, "threads": 1})
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of hosts about their own defaults
    libraries = ("sb3-contrib", "stable-baselines3", "tianshou", "torch")
    harness.announce(libraries=libraries)

    # The hosts' conjugate gradients start from noise or stop early: compare where they converge.
    _agree("sb3-contrib TRPO", sb3_train(0, iterations=40), 5e-3)
    softplus = torch.nn.Softplus  # the core has no such activation: Fisher products by torch
    _agree("sb3-contrib TRPO, Softplus", sb3_train(0, 40, softplus), 5e-3)
    for name in ("NPG", "TRPO"):
        _agree(f"tianshou {name}", tianshou_sides(name, 0, damping=1.0), 5e-3)

    comparisons: dict[str, tuple[dict[str, tuple[Side, Any]], int]] = {
        "sb3-contrib TRPO: policy": (sb3_train(0), options.rounds),
        "sb3-contrib TRPO: policy, Softplus": (
            sb3_train(0, activation=softplus),
            options.rounds,
        ),
        "sb3-contrib TRPO: train()": (sb3_train(10), options.rounds),
        "sb3-contrib TRPO: learn(), 1 update": (sb3_learn(1), max(1, options.rounds // 3)),
        "tianshou NPG: policy": (tianshou_sides("NPG", 0), options.rounds),
        "tianshou TRPO: policy": (tianshou_sides("TRPO", 0), options.rounds),
        "tianshou TRPO: update": (tianshou_sides("TRPO", 5), options.rounds),
    }
    print(f"\n| what | host | natgrad | ratio |\n{'|---' * 4}|")
    rows: list[harness.Row] = []
    for name, (sides, rounds) in comparisons.items():
        turns = {side: functools.partial(turn, calls) for side, (calls, _) in sides.items()}
        seconds = harness.take_turns(turns, rounds=rounds, warm=2)
        ratio = statistics.median(harness.ratios(seconds["host"], seconds["natgrad"]))
        host, ours = (1e3 * statistics.median(seconds[side]) for side in ("host", "natgrad"))
        print(f"| {name} | {host:.1f} ms | {ours:.1f} ms | {ratio:.1f} |", flush=True)
        rows.append(
            {
                "what": name, "threads": options.threads, "rounds": rounds,
                "host_ms": f"{host:.3f}", "natgrad_ms": f"{ours:.3f}", "ratio": f"{ratio:.2f}",
            }
        )  # fmt: skip
    harness.write_rows(options.output, rows)


if __name__ == "__main__":
    main()
