// Enumerators as Python spells them: one table for each enum, from which names are parsed and printed.
#pragma once

#include <string>

#include "arrays.hpp"

namespace natgrad::bindings {

template <class E>
struct Named {
  const char* name;
  E value;
};

// The table of E, in the order of error messages; an array of Named<E>. One specialisation for each enum.
template <class E>
inline constexpr int kNames = 0;

template <class E>
const char* name_of(E value) {
  for (const Named<E>& entry : kNames<E>) {
    if (entry.value == value) return entry.name;
  }
  return "";
}

// The enumerator of this name, for an argument of Python; ValueError if there is none. `allowed` leaves out
// those that the argument does not take.
template <class E>
E named(const std::string& name, const std::string& argument, bool (*allowed)(E) = nullptr) {
  std::string wanted, last;
  for (const Named<E>& entry : kNames<E>) {
    if (allowed != nullptr && !allowed(entry.value)) continue;
    if (name == entry.name) return entry.value;
    if (!last.empty()) wanted += (wanted.empty() ? "" : ", ") + last;
    last = entry.name;
  }
  wrong_value(argument,
              "want " + wanted + (wanted.empty() ? "" : " or ") + last + ", got '" + name + "'");
}

}  // namespace natgrad::bindings
