"""Drop-in for sb3-contrib: `from natgrad.sb3 import TRPO`, and nothing else changes.

Collecting, policies, callbacks, loggers, files and, unless asked otherwise, the critic's fit are
stable-baselines3's. The policy's update is natgrad's, by default with sb3-contrib's conventions.
"""

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from natgrad import _core
from natgrad.hosts.torch import (
    Perceptron,
    PolicyUpdater,
    UnreadableError,
    ValueFitter,
    all_finite,
    few_threads,
    normalized,
    read_layers,
)

try:
    import sb3_contrib
    import torch
    from gymnasium import spaces
    from stable_baselines3.common import distributions
    from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
    from stable_baselines3.common.torch_layers import MlpExtractor
    from stable_baselines3.common.utils import explained_variance
except ModuleNotFoundError as error:
    raise ImportError("natgrad.sb3 needs sb3-contrib: pip install 'natgrad[sb3]'") from error

__all__ = ["NPG", "TRPO"]

Doubles = NDArray[np.float64]


class TRPO(sb3_contrib.TRPO):
    """sb3-contrib's TRPO with natgrad's update: the same constructor, files and logger keys.

    An update is transactional: input that leaves sb3-contrib with NaN weights (a reward that is not
    finite, a collapsed standard deviation) leaves the policy unchanged here, and `train/status`
    says why. Either class loads the files of the other.

    Args:
        *args, **kwargs: as `sb3_contrib.TRPO` takes them.
        conventions: 'sb3': KL(new || old), averaged over the dimensions of Box and MultiBinary
            actions; a step scaled by the damped matrix; conjugate gradients stop at a residual of
            1e-5. 'natgrad': KL(old || new), summed; a step scaled by F; a residual of 1e-10 ||g||.
        kl_reduction, kl_direction: 'mean' or 'sum', 'new_old' or 'old_new', in place of what
            `conventions` says. MultiDiscrete actions are summed by either library.
        critic: 'sb3' fits the critic by epochs of Adam; 'natgrad' by `GaussNewtonFit`, if the value
            network is a perceptron that the core can read. `n_critic_updates`, `batch_size` and
            `learning_rate` then have no effect.

    Raises:
        ValueError: an option has another value than these.
    """

    _line_search = True

    def __init__(
        self,
        *args: Any,
        conventions: Literal["sb3", "natgrad"] = "sb3",
        kl_reduction: Literal["sum", "mean"] | None = None,
        kl_direction: Literal["old_new", "new_old"] | None = None,
        critic: Literal["sb3", "natgrad"] = "sb3",
        **kwargs: Any,
    ):
        for name, value, wanted in (
            ("conventions", conventions, ("sb3", "natgrad")),
            ("kl_reduction", kl_reduction, ("sum", "mean", None)),
            ("kl_direction", kl_direction, ("old_new", "new_old", None)),
            ("critic", critic, ("sb3", "natgrad")),
        ):
            if value not in wanted:
                raise ValueError(f"{name}: want one of {wanted}, got {value!r}")
        self.conventions, self.critic = conventions, critic
        self.kl_reduction, self.kl_direction = kl_reduction, kl_direction
        self._updater, self._fitter = PolicyUpdater(), ValueFitter()
        super().__init__(*args, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_updater", "_fitter"]

    def _update_options(self) -> dict[str, Any]:
        """Settings of `natgrad.TrustRegionUpdate`, from attributes that callbacks may change."""
        own = self.conventions == "natgrad"
        averaged = isinstance(self.action_space, spaces.Box | spaces.MultiBinary) and not own
        search = _core.LineSearch(self.line_search_shrinking_factor, self.line_search_max_iter)
        return {
            "max_kl": self.target_kl,
            "damping": self.cg_damping,
            "line_search": search if self._line_search else None,
            "step_scale": "fisher" if own else "damped",
            "solver": _core.ConjugateGradient(
                self.cg_max_steps,
                rtol=1e-10 if own else 0.0,
                atol=0.0 if own else 1e-5,
                or_direct=own,
            ),
            "kl_reduction": self.kl_reduction or ("mean" if averaged else "sum"),
            "kl_direction": self.kl_direction or ("old_new" if own else "new_old"),
        }

    def train(self) -> None:
        """Updates policy and critic with the rollout buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)

        with few_threads():
            (rollout,) = self.rollout_buffer.get(batch_size=None)
        report = self._update_policy(rollout)
        if all_finite(rollout.observations, rollout.returns):
            value_losses = self._fit_critic(rollout)
        else:
            value_losses = []

        self._n_updates += 1
        status, objective, kl, success = "NON_FINITE", np.nan, 0.0, False
        if report is not None:
            status, objective, success = report.status.name, report.surrogate, report.accepted
        if report is not None and success:
            objective, kl = objective + report.improvement, report.kl
        buffer = self.rollout_buffer
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        record = self.logger.record
        record("train/policy_objective", objective)
        record("train/value_loss", np.mean(value_losses) if value_losses else np.nan)
        record("train/kl_divergence_loss", kl)
        record("train/explained_variance", explained)
        record("train/is_line_search_success", float(success))
        if hasattr(self.policy, "log_std"):
            record("train/std", torch.exp(self.policy.log_std).mean().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/status", status, exclude="tensorboard")

    # The policy ----------------------------------------------------------------------------------

    def _update_policy(self, rollout: Any) -> _core.UpdateReport | None:
        """One update; None if the batch is not finite, since nothing can be learned from it."""
        rows = slice(None, None, self.sub_sampling_factor)
        observations = rollout.observations
        observations = (
            {key: value[rows] for key, value in observations.items()}
            if isinstance(observations, dict)
            else observations[rows]
        )
        actions, advantages = rollout.actions[rows], rollout.advantages[rows]
        old_log_prob = rollout.old_log_prob[rows]
        if not all_finite(observations, actions, advantages, old_log_prob):
            return None
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        discrete = not isinstance(self.action_space, spaces.Box)

        def forward() -> tuple[Any, Any]:
            distribution = self.policy.get_distribution(observations)
            return distribution.distribution, distribution.log_prob(actions)

        path = self._updater.path
        report = self._updater(
            self._update_options(),
            lambda: self._read(observations),
            forward,
            # sb3-contrib's rule; parameters that the actor does not depend on are left alone
            [p for name, p in self.policy.named_parameters() if "value" not in name],
            (actions.long() if discrete else actions).cpu().numpy(),
            self._prepared(advantages.cpu().numpy()),
            old_log_prob.cpu().numpy().astype(np.float64),
        )
        if self._updater.path != path:
            self.logger.info(f"natgrad: {self._updater.path}")
        return report

    def _prepared(self, advantages: NDArray[Any]) -> Doubles:
        """Advantages, normalised like sb3-contrib's if `normalize_advantage` is set."""
        if self.normalize_advantage:
            return normalized(advantages, epsilon=1e-8)
        return advantages.astype(np.float64)

    def _read(self, observations: Any) -> tuple[Perceptron, Any]:
        """The actor as the core would compute it, and its input; raises UnreadableError."""
        policy = self.policy
        self._require_standard("get_distribution", "_get_action_dist_from_latent")
        distribution: _core.Distribution
        log_std = None
        match policy.action_dist:
            case distributions.StateDependentNoiseDistribution():
                raise UnreadableError("its noise depends on the state (gSDE)")
            case distributions.DiagGaussianDistribution(action_dim=size):
                distribution, log_std = _core.DiagonalGaussian(size), policy.log_std
            case distributions.CategoricalDistribution(action_dim=size):
                distribution = _core.Categorical(size)
            case distributions.MultiCategoricalDistribution(action_dims=sizes):
                distribution = _core.MultiCategorical([int(size) for size in sizes])
            case distributions.BernoulliDistribution(action_dims=size):
                distribution = _core.Bernoulli(size)
            case other:
                raise UnreadableError(f"its distribution is {type(other).__name__}")
        modules = [policy.mlp_extractor.policy_net, policy.action_net]
        source = read_layers(modules, distribution, log_std)
        return source, self._features(observations, policy.pi_features_extractor)

    def _require_standard(self, *methods: str) -> None:
        policy = self.policy
        for name in methods:
            if getattr(type(policy), name) is not getattr(ActorCriticPolicy, name):
                raise UnreadableError(f"{type(policy).__name__} has a {name} of its own")
        if type(policy.mlp_extractor) is not MlpExtractor:
            raise UnreadableError(f"its layers are in a {type(policy.mlp_extractor).__name__}")

    def _features(self, observations: Any, extractor: Any) -> Any:
        """The input of the first layer; raises UnreadableError if layers before it are learned."""
        if next(extractor.parameters(), None) is not None:
            raise UnreadableError(
                f"its features come from a {type(extractor).__name__} that learns"
            )
        with torch.no_grad(), few_threads():
            return BasePolicy.extract_features(self.policy, observations, extractor)

    # The critic ----------------------------------------------------------------------------------

    def _fit_critic(self, rollout: Any) -> list[float]:
        """Fits the critic and returns the mean squared errors on the way."""
        if self.critic == "natgrad":
            self._require_standard("predict_values")
            net = [self.policy.mlp_extractor.value_net, self.policy.value_net]
            features = self._features(rollout.observations, self.policy.vf_features_extractor)
            targets = rollout.returns.cpu().numpy().astype(np.float64)
            return [self._fitter(net, features, targets)]
        losses = []
        for _ in range(self.n_critic_updates):
            for batch in self.rollout_buffer.get(self.batch_size):
                values = self.policy.predict_values(batch.observations).flatten()
                loss = torch.nn.functional.mse_loss(batch.returns, values)
                losses.append(loss.item())
                self.policy.optimizer.zero_grad()
                loss.backward()
                for parameter in self._updater.parameters:
                    parameter.grad = None  # shared with the actor, whose step is bounded
                self.policy.optimizer.step()
        return losses


class NPG(TRPO):
    """Natural policy gradient (Kakade 2002): TRPO's full step, taken without a line search.

    The arguments are those of `TRPO`; those of the line search have no effect. The step is rejected
    only if the policy cannot be evaluated after it.
    """

    _line_search = False

    def learn(self, *args: Any, tb_log_name: str = "NPG", **kwargs: Any) -> Self:
        """As `TRPO.learn`."""
        return super().learn(*args, tb_log_name=tb_log_name, **kwargs)  # type: ignore[no-any-return]
