"""Options of runs from before options were values.

Checkpoints and config.json had a number for everything that is now an argument of a value:
`damping_mode="adaptive"` with `damping_min` and `damping_max` is `AdaptiveDamping(...)` today. Such
a run still loads and goes on with the same bits, unless it used what updates no longer have.
"""

from collections.abc import Mapping
from typing import Any

from natgrad import _core

__all__ = ["as_values"]

# Their defaults, for runs from before one of them was added.
_DEFAULTS: dict[str, Any] = {
    "damping_min": 1e-5,
    "damping_max": 10.0,
    "solver": "auto",
    "cg_rtol": 1e-10,
    "cg_progress_tolerance": 0.0,
    "cg_progress_window": 3,
    "cg_last_residual": True,
    "warm_start": False,
    "preconditioner": "auto",
    "kfac_every": 2,
    "kfac_refresh": 1,
    "kfac_decay": 0.0,
    "subsample_every": 6,
    "subsample_iterations": 4,
    "nystrom_rank": 20,
}


def as_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as values; today's options are returned as they are.

    Raises:
        KeyError: a mapping that is not one of options.
        ValueError: an option is gone and was not at its default.
    """
    if "damping_mode" not in options:  # all trust regions had it
        return dict(options)
    flat = {**_DEFAULTS, **options}
    for name in ("kfac_refresh", "kfac_decay"):
        _refuse_unless(flat[name] == _DEFAULTS[name], flat, name)
        del flat[name]
    kind, every, _ = (flat.pop(name) for name in ("preconditioner", "kfac_every", "nystrom_rank"))
    inner = _core.Subsample(flat.pop("subsample_every"), flat.pop("subsample_iterations"))
    if kind == "auto" and every != 2:
        _refuse_unless(False, {"kfac_every": every}, "kfac_every")
    _refuse_unless(kind not in ("diagonal", "nystrom"), {"preconditioner": kind}, "preconditioner")
    flat["preconditioner"] = {"kfac": _core.KFac(every), "subsample": inner}.get(kind, kind)

    mode, low, high = (flat.pop(f"damping_{name}") for name in ("mode", "min", "max"))
    if mode == "trace":
        flat["damping"] = _core.TraceDamping(flat["damping"])
    elif mode == "adaptive":
        flat["damping"] = _core.AdaptiveDamping(flat["damping"], low, high)

    tolerance, window = flat.pop("cg_progress_tolerance"), flat.pop("cg_progress_window")
    iterations = _core.ConjugateGradient(
        flat["cg_iterations"],
        flat.pop("cg_rtol"),
        stop=_core.Progress(tolerance, window) if tolerance else None,
        warm_start=flat.pop("warm_start"),
        last_residual=flat.pop("cg_last_residual"),
        or_direct=flat["solver"] == "auto",
    )
    if flat["solver"] != "direct":
        del flat["cg_iterations"]
        flat["solver"] = iterations

    if "line_search_shrink" in flat:
        names = ("shrink", "max_backtracks", "accept_ratio")
        flat["line_search"] = _core.LineSearch(
            **{name: flat.pop(f"line_search_{name}") for name in names}
        )
    return flat


def _refuse_unless(good: bool, options: Mapping[str, Any], name: str) -> None:
    if not good:
        raise ValueError(
            f"its option {name} is {options[name]!r}, which updates no longer have; go on with it "
            "in the version of natgrad that wrote it"
        )
