"""Drop-in for tianshou 2: `from natgrad.tianshou import NPG, TRPO`, and nothing else changes.

Collecting, advantages, the critic's fit and training statistics are tianshou's; the actor's update
is natgrad's. The builders of `tianshou.highlevel` are in `natgrad.tianshou_highlevel`.
"""

import copy
import logging
from typing import Any, cast

import numpy as np

from natgrad import _core
from natgrad.hosts.torch import (
    Perceptron,
    PolicyUpdater,
    UnreadableError,
    all_finite,
    distribution_parameters,
    few_threads,
    normalized,
    read_layers,
)

try:
    import torch
    from tianshou import algorithm as host
    from tianshou.algorithm.modelfree.npg import NPGTrainingStats
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.modelfree.trpo import TRPOTrainingStats
    from tianshou.data import SequenceSummaryStats
    from tianshou.utils.net.common import MLP, Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic
    from tianshou.utils.net.discrete import DiscreteActor
except ModuleNotFoundError as error:
    raise ImportError("natgrad.tianshou needs tianshou: pip install 'natgrad[tianshou]'") from error

__all__ = ["NPG", "TRPO"]

_log = logging.getLogger("natgrad.tianshou")


class NPG(host.NPG):
    """tianshou's NPG with natgrad's update: the same constructor and training statistics.

    The step is `trust_region_size` times the solution of the damped system, as tianshou takes it.
    An update that cannot be made (a reward that is not finite, constant advantages, a collapsed
    standard deviation) leaves the actor as it was, and the reason goes to the log of this module.
    """

    advantage_normalization: bool
    ret_rms: Any

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._updater = PolicyUpdater()

    def _update_options(self) -> dict[str, Any]:
        """Settings of `natgrad.TrustRegionUpdate`."""
        return {
            "damping": self._damping,
            "solver": _core.ConjugateGradient(10, rtol=0.0, atol=1e-5),
            "step_scale": self.trust_region_size,
            "line_search": None,
        }

    def _behaviour(self, minibatch: Any) -> Any:
        """(N,) log probabilities that the ratio refers to; None for those of the present policy."""
        return None

    def _preprocess_batch(self, batch: Any, buffer: Any, indices: Any) -> Any:
        """Like tianshou's, but constant advantages become zeros, and statistics stay finite."""
        normalize, statistics = self.advantage_normalization, copy.deepcopy(self.ret_rms)
        self.advantage_normalization = False
        try:
            batch = super()._preprocess_batch(batch, buffer, indices)
        finally:
            self.advantage_normalization = normalize
        if not np.isfinite(self.ret_rms.var).all():
            self.ret_rms = statistics
        if normalize and all_finite(batch.adv):
            batch.adv = torch.as_tensor(normalized(batch.adv.cpu().numpy())).to(batch.adv)
        return batch

    def _update_with_batch(self, batch: Any, batch_size: int | None, repeat: int) -> Any:
        try:
            kind = self._distribution(batch[:2])
        except UnreadableError as reason:
            self._announce(f"update by tianshou: {reason}")
            return super()._update_with_batch(batch, batch_size, repeat)
        columns: dict[str, list[float]] = {
            name: [] for name in ("actor_loss", "vf_loss", "step_size", "kl")
        }
        for _ in range(repeat):
            with few_threads():
                minibatches = list(batch.split(batch_size or -1, merge_last=True))
            for minibatch in minibatches:
                row = self._update_actor(minibatch, kind)
                row["vf_loss"] = self._fit_critic(minibatch)
                for name, values in columns.items():
                    values.append(row[name])
        return self._statistics(
            {name: SequenceSummaryStats.from_sequence(v) for name, v in columns.items()}
        )

    def _statistics(self, columns: dict[str, Any]) -> Any:
        columns.pop("step_size")
        return NPGTrainingStats(**columns)

    def _distribution(self, batch: Any) -> _core.Distribution:
        """The kind of distribution, determined from a few rows.

        It is determined again, and the actor is read again, if the policy, its actor or its
        `dist_fn` is another object than before.

        Raises:
            UnreadableError: the core has no such distribution.
        """
        source = (self.policy, self.policy.actor, self.policy.dist_fn)
        if self._updater.seen[:-1] == source:
            return cast(_core.Distribution, self._updater.seen[-1])
        with torch.no_grad(), few_threads():
            distribution = self.policy(batch).dist
            kind, _ = distribution_parameters(distribution)
            if distribution.log_prob(batch.act).ndim != 1:
                raise UnreadableError("it is not one distribution of all dimensions of an action")
        self._updater = PolicyUpdater()
        self._updater.seen = (*source, kind)
        return kind

    def _update_actor(self, minibatch: Any, kind: _core.Distribution) -> dict[str, float]:
        """One update of the actor; its training statistics."""
        behaviour = self._behaviour(minibatch)
        given = [minibatch.adv, minibatch.act] + ([] if behaviour is None else [behaviour])
        if not all_finite(*given):
            _log.warning("natgrad: NON_FINITE: advantages, actions or probabilities are not finite")
            return {"actor_loss": np.nan, "step_size": 0.0, "kl": 0.0}

        def forward() -> tuple[Any, Any]:
            distribution = self.policy(minibatch).dist
            return distribution, distribution.log_prob(minibatch.act)

        gaussian = isinstance(kind, _core.DiagonalGaussian)
        actions = minibatch.act if gaussian else minibatch.act.long()
        report = self._updater(
            self._update_options(),
            lambda: self._read(minibatch, kind),
            forward,
            self.policy.actor.parameters(),
            actions.cpu().numpy(),
            minibatch.adv.cpu().numpy().astype(np.float64),
            None if behaviour is None else behaviour.cpu().numpy().astype(np.float64),
        )
        self._announce(self._updater.path)
        if not report.accepted:
            _log.warning("natgrad: %s: %s", report.status.name, report.message)
        return {
            "actor_loss": -(self._updater.likelihood if behaviour is None else report.surrogate),
            "step_size": report.step_fraction * report.step_scale,
            "kl": report.kl if report.accepted else 0.0,
        }

    def _fit_critic(self, minibatch: Any) -> float:
        """Fits the critic if the returns are finite; returns the loss before the last step."""
        loss = np.nan
        if all_finite(minibatch.returns):
            for _ in range(self.optim_critic_iters):
                values = self.critic(minibatch.obs).flatten()
                vf_loss = torch.nn.functional.mse_loss(minibatch.returns, values)
                self.optim.step(vf_loss)
                loss = vf_loss.item()
        return loss

    def _announce(self, path: str) -> None:
        if path != getattr(self, "_path", None):
            self._path = path
            _log.info("natgrad: %s", path)

    def _read(self, minibatch: Any, kind: _core.Distribution) -> tuple[Perceptron, Any]:
        """The actor as the core would compute it, and its input; raises UnreadableError."""
        policy, actor = self.policy, self.policy.actor
        if type(policy).forward is not ProbabilisticActorPolicy.forward:
            raise UnreadableError(f"{type(policy).__name__} has a forward pass of its own")
        log_std = None
        if type(actor) is ContinuousActorProbabilistic:
            if actor._c_sigma or not actor._unbounded:
                raise UnreadableError("its mean is bounded, or its deviation depends on the state")
            kind, log_std = _core.DiagonalGaussian(kind.action_size), actor.sigma_param
            modules = [*_layers(actor.preprocess), *_layers(actor.mu)]
        elif type(actor) is DiscreteActor:
            modules = [*_layers(actor.preprocess), *_layers(actor.last)]
        else:
            modules = _layers(actor)
        source = read_layers(modules, kind, log_std)
        observations = minibatch.obs
        if not isinstance(observations, np.ndarray | torch.Tensor):
            raise UnreadableError(f"its observations are a {type(observations).__name__}")
        with few_threads():
            rows = torch.as_tensor(observations, dtype=torch.float32).flatten(1)
        if not all_finite(rows):
            raise UnreadableError("its observations are not finite")
        return source, rows


class TRPO(NPG, host.TRPO):
    """tianshou's TRPO with natgrad's update: the same constructor and training statistics.

    `max_kl` bounds KL(old || new), summed over the dimensions of an action. If no fraction of the
    step is acceptable, the statistics say step_size = kl = 0.
    """

    def _update_options(self) -> dict[str, Any]:
        return {
            **super()._update_options(),
            "max_kl": self.max_kl,
            "step_scale": "damped",
            "line_search": _core.LineSearch(self.backtrack_coeff, self.max_backtracks),
        }

    def _behaviour(self, minibatch: Any) -> Any:
        return minibatch.logp_old

    def _statistics(self, columns: dict[str, Any]) -> Any:
        return TRPOTrainingStats(**columns)


def _layers(module: Any) -> list[Any]:
    """The modules of tianshou's networks, in the order in which they are applied."""
    if type(module) is Net:
        if module.use_dueling or module.softmax or module.num_atoms > 1:
            raise UnreadableError("its Net does more than its layers")
        return _layers(module.model)
    if type(module) is MLP:
        return [module.model]
    raise UnreadableError(f"a {type(module).__name__} is not read")
