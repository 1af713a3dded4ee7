"""The update by tianshou's own code.

It scales its step by x'(F + damping I) x, for which it makes one product more.
"""

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer, assign, flat, spaces_of
from natgrad.bench import DAMPING, MAX_KL, Doubles, Problem

__all__ = ["peers"]


def peers(problem: Problem, threads: int) -> Iterator[Peer]:
    """The one way to make the update: TRPO's, on a batch, with a critic of one number."""
    import torch
    from tianshou.algorithm import TRPO
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Batch
    from torch import nn
    from torch.distributions import Categorical, Independent, Normal, kl_divergence

    torch.set_num_threads(threads)
    shape = problem.shape
    widths = (shape.observation_size, *shape.hidden, shape.outputs)

    class Actor(nn.Module):  # type: ignore[misc]
        """The same network; its parameters are in natgrad's order."""

        def __init__(self) -> None:
            super().__init__()
            modules: list[Any] = []
            for n, m in itertools.pairwise(widths):
                modules += [nn.Linear(n, m), nn.Tanh()]
            self.net = nn.Sequential(*modules[:-1])
            if shape.gaussian:
                self.log_std = nn.Parameter(torch.zeros(shape.outputs))
            layers = list(self.net.parameters())
            self.ordered = [*layers, self.log_std] if shape.gaussian else layers

        def parameters(self, recurse: bool = True) -> Iterator[Any]:
            return iter(self.ordered)

        def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[Any, Any]:
            z = self.net(obs)
            return ((z, self.log_std.exp().expand_as(z)) if shape.gaussian else z), state

    def gaussian(outputs: Any) -> Any:
        return Independent(Normal(*outputs), 1)

    class Critic(nn.Module):  # type: ignore[misc]
        """One number: its update wants at least one step of a critic."""

        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.zeros(1))

        def forward(self, obs: Any) -> Any:
            return self.value.expand(len(obs))

    actor = Actor()
    tensors = actor.ordered
    algorithm = TRPO(
        policy=ProbabilisticActorPolicy(
            actor=actor,
            dist_fn=gaussian if shape.gaussian else lambda logits: Categorical(logits=logits),
            action_space=spaces_of(shape)[1],
            action_scaling=False,
            action_bound_method=None,
        ),
        critic=Critic(),
        optim=AdamOptimizerFactory(),
        max_kl=MAX_KL,
        optim_critic_iters=1,
        advantage_normalization=False,
    )
    batch = Batch(
        obs=torch.as_tensor(problem.observations),
        act=torch.as_tensor(problem.actions),
        adv=torch.as_tensor(problem.advantages.astype(np.float32)),
        logp_old=torch.as_tensor(problem.log_probs),
        returns=torch.zeros(shape.rows),
        info=Batch(),
    )

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of each step back in the line search
            algorithm._update_with_batch(batch, None, 1)

    def prepare() -> None:
        assign(tensors, problem.start)

    def step() -> Doubles:
        prepare()
        run()
        return flat(tensors) - problem.start

    def product(v: Doubles) -> Doubles:
        prepare()
        distribution = algorithm.policy(batch).dist
        with torch.no_grad():
            old = algorithm.policy(batch).dist
        kl = kl_divergence(old, distribution).mean()
        gradient = algorithm._get_flat_grad(kl, actor, create_graph=True)
        vector = torch.as_tensor(v.astype(np.float32))
        found: Doubles = algorithm._MVP(vector, gradient).double().numpy()
        return found - DAMPING * v

    yield Peer("tianshou", "its TRPO, critic of one number", run, prepare, step, product, True)
