// Everything that a program in C++ needs: policies, value functions, updates and fits. tests/cpp/example is
// a program that uses it.
#pragma once

#include "natgrad/base/parallel.hpp"
#include "natgrad/base/random.hpp"
#include "natgrad/model/policy.hpp"
#include "natgrad/model/value_function.hpp"
#include "natgrad/update/advantage.hpp"
#include "natgrad/update/policy_gradient_update.hpp"
#include "natgrad/update/trust_region_update.hpp"
#include "natgrad/update/value_fit.hpp"
