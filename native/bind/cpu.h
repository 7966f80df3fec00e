// Which instruction sets this processor has, of those that x86 kernels are compiled for.
#pragma once
#include <cstring>

namespace xent {

inline bool has_isa(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (!std::strcmp(name, "x86_64_v3")) return v3;
  if (!std::strcmp(name, "x86_64_v4"))
    return v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
#endif
  return !std::strcmp(name, "baseline");
}

}  // namespace xent
