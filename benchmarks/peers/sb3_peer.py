"""The update by sb3-contrib's own code.

sb3-contrib averages divergences over the dimensions of an action, so bound and damping are divided
by their number. It scales its step by x'(F + damping I) x, for which it makes one product more, and
another one for its random start.
"""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer, assign, flat, spaces_of
from natgrad.bench import CG_ITERATIONS, DAMPING, MAX_KL, Doubles, Problem

__all__ = ["peers"]


def peers(problem: Problem, threads: int) -> Iterator[Peer]:
    """The one way to make the update: `TRPO.train()` on a full rollout buffer."""
    import gymnasium
    import sb3_contrib
    import torch
    from stable_baselines3.common.distributions import kl_divergence
    from stable_baselines3.common.logger import configure

    torch.set_num_threads(threads)
    shape = problem.shape

    class Sizes(gymnasium.Env[Any, Any]):
        """Spaces only: nothing is ever stepped."""

        observation_space, action_space = spaces_of(shape)

    # It averages divergences over the dimensions of an action: bound and damping shrink with them.
    mean_over = shape.outputs if shape.gaussian else 1
    model = sb3_contrib.TRPO(
        "MlpPolicy",
        Sizes(),
        n_steps=shape.rows,
        batch_size=shape.rows,
        cg_max_steps=CG_ITERATIONS,
        cg_damping=DAMPING / mean_over,
        target_kl=MAX_KL / mean_over,
        n_critic_updates=0,
        normalize_advantage=False,
        policy_kwargs={"net_arch": {"pi": list(shape.hidden), "vf": []}},
        device="cpu",
        seed=0,
    )
    model.set_logger(configure(None, []))
    buffer = model.rollout_buffer
    for name, values in (
        ("observations", problem.observations),
        ("actions", problem.actions),
        ("advantages", problem.advantages),
        ("log_probs", problem.log_probs),
    ):
        getattr(buffer, name)[:] = np.reshape(values, getattr(buffer, name).shape)
    buffer.full = True
    net = [m for m in model.policy.mlp_extractor.policy_net if hasattr(m, "weight")]
    tensors = [t for layer in (*net, model.policy.action_net) for t in (layer.weight, layer.bias)]
    if shape.gaussian:
        tensors.append(model.policy.log_std)

    def prepare() -> None:
        assign(tensors, problem.start)

    next(buffer.get(None))  # it flattens its arrays at the first call, once for each rollout

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no value losses
            model.train()

    def step() -> Doubles:
        prepare()
        run()
        return flat(tensors) - problem.start

    def product(v: Doubles) -> Doubles:
        prepare()
        observations = torch.as_tensor(problem.observations)
        with torch.no_grad():
            old = copy.copy(model.policy.get_distribution(observations))
        kl = kl_divergence(model.policy.get_distribution(observations), old).mean()
        gradients = torch.autograd.grad(kl, tensors, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        vector = torch.as_tensor(v.astype(np.float32))
        found: Doubles = model.hessian_vector_product(tensors, flat, vector).double().numpy()
        return mean_over * found - DAMPING * v

    yield Peer("sb3-contrib", "its TRPO.train() without critic", run, prepare, step, product, True)
