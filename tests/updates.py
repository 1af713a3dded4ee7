"""Updates of the core beside the oracle's: shared by the tests of what an update does."""

from types import SimpleNamespace

import oracle
from conftest import core_options

from natgrad import _core as core

Status = core.UpdateStatus


def batch_of(p, log_probs=None, **changes):
    fields = {
        "observations": p.observations,
        "actions": p.actions,
        "advantages": p.advantages,
        "log_probs": log_probs,
    }
    return SimpleNamespace(**{**fields, **changes})


def both_updates(p, log_probs=None, **options):
    """The core's report and the oracle's, for the same update; the core's policy has moved."""
    twin_options = dict(options)
    search = twin_options.get("line_search", "default")
    if isinstance(search, core.LineSearch):
        twin_options["line_search"] = (search.shrink, search.max_backtracks, search.accept_ratio)
    elif search == "default":
        twin_options.pop("line_search", None)
    want = oracle.trust_region_update(
        p.oracle,
        p.theta,
        p.observations.astype(float),
        p.actions,
        p.advantages,
        log_probs,
        **twin_options,
    )
    update = core.TrustRegionUpdate(**core_options(or_direct=False, **options))
    return update(p.core, batch_of(p, log_probs)), want


OPTIONS = {
    "defaults": {},
    "little damping": {"damping": 1e-3, "cg_iterations": 5},
    "no damping, few iterations": {"damping": 0.0, "cg_iterations": 3},
    "large steps": {"max_kl": 0.5},
    "very large steps": {"max_kl": 4.0, "line_search": core.LineSearch(0.7, 25, 0.1)},
    "loose cg": {"cg_rtol": 0.3},
    "closed-form step": {"line_search": None},
    "damped step": {"damped_step": True},
    "normalised advantages": {"normalize_advantages": True},
    # Few iterations: after ten, conjugate gradients have amplified the rounding of either side.
    "empirical": {"fisher": "empirical", "cg_iterations": 5},
    "a fraction of the batch": {"curvature_fraction": 0.26, "cg_iterations": 5},
    "a fraction, empirically": {
        "curvature_fraction": 0.26,
        "fisher": "empirical",
        "cg_iterations": 5,
    },
    "absolute tolerance": {"cg_rtol": 0.0, "cg_atol": 0.05},
    "averaged over dimensions": {"kl_reduction": "mean"},
    "the other divergence": {"kl_direction": "new_old", "max_kl": 0.5},
    "as sb3-contrib": {
        "kl_reduction": "mean",
        "kl_direction": "new_old",
        "cg_rtol": 0.0,
        "cg_atol": 1e-5,
        "damped_step": True,
        "max_kl": 0.2,
    },
    "a fixed step": {"step_size": 0.03, "line_search": None, "kl_reduction": "mean"},
}


def unchanged(p, before):
    assert p.core.parameters.tobytes() == before
