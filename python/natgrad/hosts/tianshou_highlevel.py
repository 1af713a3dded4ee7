"""The experiment builders of `tianshou.highlevel`, which build `natgrad.tianshou`'s algorithms."""

from typing import Any

from natgrad.hosts.tianshou import NPG, TRPO

try:
    from tianshou.highlevel import algorithm, experiment
except ModuleNotFoundError as error:
    raise ImportError(
        "natgrad.tianshou_highlevel needs tianshou and its evaluation tools: "
        "pip install 'natgrad[tianshou]' 'tianshou[eval]'"
    ) from error

__all__ = ["NPGExperimentBuilder", "TRPOExperimentBuilder"]


class _NPGFactory(algorithm.NPGAlgorithmFactory):
    def _get_algorithm_class(self) -> type[NPG]:
        return NPG


class _TRPOFactory(algorithm.TRPOAlgorithmFactory):
    def _get_algorithm_class(self) -> type[TRPO]:
        return TRPO


def _factory_arguments(builder: Any) -> tuple[Any, ...]:
    return (
        builder._params,
        builder._training_config,
        builder._get_actor_factory(),
        builder._get_critic_factory(0),
        builder._get_optim_factory(),
    )


class NPGExperimentBuilder(experiment.NPGExperimentBuilder):
    """tianshou's builder for `natgrad.tianshou.NPG`."""

    def _create_algorithm_factory(self) -> Any:
        return _NPGFactory(*_factory_arguments(self))


class TRPOExperimentBuilder(experiment.TRPOExperimentBuilder):
    """tianshou's builder for `natgrad.tianshou.TRPO`."""

    def _create_algorithm_factory(self) -> Any:
        return _TRPOFactory(*_factory_arguments(self))
