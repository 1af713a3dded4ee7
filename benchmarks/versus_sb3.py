"""The whole policy update against sb3-contrib's TRPO: same policy, same batch, in turn.

    pip install sb3-contrib && python benchmarks/versus_sb3.py [--threads 2] [--rounds 20]

17-64-64-6 on a batch of 2048 HalfCheetah-v5 steps that sb3-contrib collects; ten conjugate gradient
iterations, ten candidates, damping and bound converted to sb3-contrib's convention (it averages the
divergence over the action dimensions, so its Fisher matrix is 6 times smaller). `train()` runs
without critic updates. Before anything is timed, its gradient of the objective and its Fisher
product, by double back-propagation, are compared with the core's.
"""

import argparse
import copy
import statistics
import time
import warnings
from typing import Any

import numpy as np
import sb3_contrib
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.logger import configure

import natgrad

ACTIONS = 6
CG_ITERATIONS = 10
PAUSE = 0.05  # seconds before each timing, for idle OpenMP threads of torch to stop spinning


def flat(tensors: list[torch.Tensor]) -> NDArray[np.float64]:
    """Tensors in natgrad's order, as one float64 vector."""
    return np.concatenate([t.detach().numpy().ravel() for t in tensors]).astype(np.float64)


def policy_tensors(policy: Any) -> list[torch.Tensor]:
    """The actor's parameters in the order of natgrad's layout: layers, then log_std."""
    layers = [policy.mlp_extractor.policy_net[0], policy.mlp_extractor.policy_net[2]]
    layers.append(policy.action_net)
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias)] + [policy.log_std]


def collect() -> tuple[Any, Any]:
    """An sb3-contrib model with a full rollout buffer, and the buffer's contents."""
    model = sb3_contrib.TRPO(
        "MlpPolicy",
        "HalfCheetah-v5",
        seed=0,
        cg_max_steps=CG_ITERATIONS,
        n_critic_updates=0,
        target_kl=0.01 / ACTIONS,
        cg_damping=0.1 / ACTIONS,
        device="cpu",
    )
    model.set_logger(configure(None, []))
    _, callback = model._setup_learn(2048)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model, next(model.rollout_buffer.get(batch_size=None))


def compare(model: Any, data: Any, policy: natgrad.Policy, advantages: Any) -> tuple[float, float]:
    """Relative differences of gradient and Fisher product from sb3-contrib's own."""
    tensors = policy_tensors(model.policy)
    model.policy.set_training_mode(True)
    with torch.no_grad():
        old = copy.deepcopy(model.policy.get_distribution(data.observations))
    distribution = model.policy.get_distribution(data.observations)
    ratio = torch.exp(distribution.log_prob(data.actions) - data.old_log_prob)
    objective = (torch.as_tensor(advantages) * ratio).mean()
    gradient = flat(list(torch.autograd.grad(objective, tensors, retain_graph=True)))
    kl = ACTIONS * kl_divergence(distribution, old).mean()
    kl_gradient = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(kl, tensors, create_graph=True)]
    )
    direction = np.random.default_rng(0).normal(size=gradient.size)
    along = (kl_gradient * torch.as_tensor(direction, dtype=torch.float32)).sum()
    product = flat(list(torch.autograd.grad(along, tensors)))

    def difference(ours: Any, theirs: Any) -> float:
        return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))

    observations, actions = data.observations.numpy(), data.actions.numpy()
    return (
        difference(policy.score(observations, actions, advantages), gradient),
        difference(natgrad.Fisher(policy, observations) @ direction, product),
    )


def main() -> None:
    """Compares, then times both in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    natgrad.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # the mean of no value losses

    model, data = collect()
    advantages = data.advantages.numpy()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    policy = natgrad.Policy(17, natgrad.DiagonalGaussian(ACTIONS))
    start = {name: value.clone() for name, value in model.policy.state_dict().items()}
    start_flat = flat(policy_tensors(model.policy))
    policy.parameters = start_flat
    gradient, product = compare(model, data, policy, advantages)
    print(f"relative difference to sb3-contrib: gradient {gradient:.1e}, product {product:.1e}")
    if max(gradient, product) > 1e-4:
        raise SystemExit("the two do not compute the same thing; no times are shown")

    update = natgrad.TrustRegionUpdate(cg_iterations=CG_ITERATIONS)
    batch = natgrad.Batch(
        data.observations.numpy(), data.actions.numpy(), advantages, data.old_log_prob.numpy()
    )
    ours, theirs = [], []
    for _ in range(options.rounds):
        model.policy.load_state_dict(start)
        time.sleep(PAUSE)
        began = time.perf_counter()
        model.train()
        theirs.append(time.perf_counter() - began)
        policy.parameters = start_flat
        time.sleep(PAUSE)
        began = time.perf_counter()
        report = update(policy, batch)
        ours.append(time.perf_counter() - began)
        if not report.accepted:
            raise SystemExit(f"the update was not accepted: {report.message}")
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    print(f"natgrad {natgrad.show_config()['isa']}, torch {torch.__version__}, ", end="")
    print(f"sb3-contrib {sb3_contrib.__version__}, {options.threads} threads, float32")
    print(f"natgrad      {1e3 * statistics.median(ours):8.2f} ms")
    print(f"sb3-contrib  {1e3 * statistics.median(theirs):8.2f} ms")
    low, high = statistics.quantiles(ratios, n=10)[0], statistics.quantiles(ratios, n=10)[-1]
    print(f"ratio        {statistics.median(ratios):8.1f}    (10 to 90 %: {low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
