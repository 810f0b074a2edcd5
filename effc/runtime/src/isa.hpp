// What the CPU has and the operating system enables.
#pragma once
#include <string>
#include <vector>

namespace effc_rt {

// Normalised feature names ("avx512f", "sse4_1", "amx_tile"), those in EFFC_CPU_DISABLE taken out. Asks the kernel
// for permission to use AMX tile state the first time.
const std::vector<std::string>& cpu_features();

// Throws Error, in words, unless the machine has every feature of `isa`.
void require_isa(const std::vector<std::string>& isa, const std::string& target);

}  // namespace effc_rt
