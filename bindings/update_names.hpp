// The enumerators of updates and of the solves in them, as Python spells them.
#pragma once

#include "names.hpp"
#include "natgrad/update/trust_region_update.hpp"
#include "py_fisher.hpp"

namespace natgrad::bindings {

template <>
inline constexpr Named<CgStatus> kNames<CgStatus>[] = {
    {"CONVERGED", CgStatus::CONVERGED},
    {"SLOW_PROGRESS", CgStatus::SLOW_PROGRESS},
    {"MAX_ITERATIONS", CgStatus::MAX_ITERATIONS},
    {"INDEFINITE", CgStatus::INDEFINITE},
    {"ZERO_RHS", CgStatus::ZERO_RHS},
};
template <>
inline constexpr Named<UpdateStatus> kNames<UpdateStatus>[] = {
    {"ACCEPTED", UpdateStatus::ACCEPTED},
    {"ZERO_GRADIENT", UpdateStatus::ZERO_GRADIENT},
    {"ZERO_ADVANTAGES", UpdateStatus::ZERO_ADVANTAGES},
    {"LINE_SEARCH_FAILED", UpdateStatus::LINE_SEARCH_FAILED},
    {"NON_FINITE", UpdateStatus::NON_FINITE},
    {"NOT_POSITIVE_DEFINITE", UpdateStatus::NOT_POSITIVE_DEFINITE},
};
template <>
inline constexpr Named<PreconditionerKind> kNames<PreconditionerKind>[] = {
    {"none", PreconditionerKind::none},
    {"kfac", PreconditionerKind::kfac},
    {"subsample", PreconditionerKind::subsample},
};
template <>
inline constexpr Named<KlReduction> kNames<KlReduction>[] = {{"sum", KlReduction::sum},
                                                             {"mean", KlReduction::mean}};
template <>
inline constexpr Named<KlDirection> kNames<KlDirection>[] = {{"old_new", KlDirection::old_new},
                                                             {"new_old", KlDirection::new_old}};

}  // namespace natgrad::bindings
