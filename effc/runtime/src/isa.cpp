// Feature bits: Intel SDM vol. 2A, CPUID leaves 1, 7.0, 7.1, 80000001H; state components: vol. 1, chapter 13.
#include "isa.hpp"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "common.hpp"

namespace effc_rt {
namespace {

enum Reg { kEax, kEbx, kEcx, kEdx };
enum State { kNone, kAvx, kAvx512, kAmx };  // register state the OS has to save
struct Feature {
  const char* name;
  uint32_t leaf, subleaf;
  Reg reg;
  int bit;
  State state;
};
constexpr uint32_t kExt = 0x80000001u;
constexpr Feature kFeatures[] = {
    {"sse3", 1, 0, kEcx, 0, kNone},
    {"pclmul", 1, 0, kEcx, 1, kNone},
    {"ssse3", 1, 0, kEcx, 9, kNone},
    {"fma", 1, 0, kEcx, 12, kAvx},
    {"cx16", 1, 0, kEcx, 13, kNone},
    {"sse4_1", 1, 0, kEcx, 19, kNone},
    {"sse4_2", 1, 0, kEcx, 20, kNone},
    {"movbe", 1, 0, kEcx, 22, kNone},
    {"popcnt", 1, 0, kEcx, 23, kNone},
    {"aes", 1, 0, kEcx, 25, kNone},
    {"avx", 1, 0, kEcx, 28, kAvx},
    {"f16c", 1, 0, kEcx, 29, kAvx},
    {"lahf_lm", kExt, 0, kEcx, 0, kNone},
    {"lzcnt", kExt, 0, kEcx, 5, kNone},
    {"bmi", 7, 0, kEbx, 3, kNone},
    {"bmi1", 7, 0, kEbx, 3, kNone},
    {"avx2", 7, 0, kEbx, 5, kAvx},
    {"bmi2", 7, 0, kEbx, 8, kNone},
    {"avx512f", 7, 0, kEbx, 16, kAvx512},
    {"avx512dq", 7, 0, kEbx, 17, kAvx512},
    {"avx512ifma", 7, 0, kEbx, 21, kAvx512},
    {"avx512cd", 7, 0, kEbx, 28, kAvx512},
    {"avx512bw", 7, 0, kEbx, 30, kAvx512},
    {"avx512vl", 7, 0, kEbx, 31, kAvx512},
    {"avx512vbmi", 7, 0, kEcx, 1, kAvx512},
    {"avx512vbmi2", 7, 0, kEcx, 6, kAvx512},
    {"gfni", 7, 0, kEcx, 8, kNone},
    {"vaes", 7, 0, kEcx, 9, kAvx},
    {"vpclmulqdq", 7, 0, kEcx, 10, kAvx},
    {"avx512vnni", 7, 0, kEcx, 11, kAvx512},
    {"avx512bitalg", 7, 0, kEcx, 12, kAvx512},
    {"avx512vpopcntdq", 7, 0, kEcx, 14, kAvx512},
    {"avx512vp2intersect", 7, 0, kEdx, 8, kAvx512},
    {"amx_bf16", 7, 0, kEdx, 22, kAmx},
    {"avx512fp16", 7, 0, kEdx, 23, kAvx512},
    {"amx_tile", 7, 0, kEdx, 24, kAmx},
    {"amx_int8", 7, 0, kEdx, 25, kAmx},
    {"avxvnni", 7, 1, kEax, 4, kAvx},
    {"avx512bf16", 7, 1, kEax, 5, kAvx512},
    {"amx_fp16", 7, 1, kEax, 21, kAmx},
    {"avxifma", 7, 1, kEax, 23, kAvx},
    {"avxvnniint8", 7, 1, kEdx, 4, kAvx},
    {"avxneconvert", 7, 1, kEdx, 5, kAvx},
    {"amx_complex", 7, 1, kEdx, 8, kAmx},
};

std::string normal(std::string name) {
  for (char& c : name)
    c = c == '-' || c == '.' ? '_' : char(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return name;
}

bool amx_permitted() {
  // Linux gives AMX tile state only on request (Documentation/arch/x86/xstate.rst): ARCH_REQ_XCOMP_PERM, XTILEDATA.
  constexpr int kReqXcompPerm = 0x1023, kXtileData = 18;
  return syscall(SYS_arch_prctl, kReqXcompPerm, kXtileData) == 0;
}

uint64_t xcr0() {
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return uint64_t(hi) << 32 | lo;
}

std::vector<std::string> detect() {
  std::vector<std::string> disabled;
  if (const char* env = getenv("EFFC_CPU_DISABLE")) {
    std::string text = env;
    for (size_t start = 0; start <= text.size();) {
      size_t stop = std::min(text.find(',', start), text.size());
      disabled.push_back(normal(text.substr(start, stop - start)));
      start = stop + 1;
    }
  }
  uint32_t r[4] = {0, 0, 0, 0};
  uint64_t enabled = 0;
  if (__get_cpuid(1, &r[0], &r[1], &r[2], &r[3]) && (r[kEcx] >> 27 & 1)) enabled = xcr0();  // OSXSAVE
  bool avx = (enabled & 0x6) == 0x6, avx512 = avx && (enabled & 0xE0) == 0xE0;
  bool amx = (enabled & 0x60000) == 0x60000;
  int amx_asked = -1;
  std::vector<std::string> found = {"sse", "sse2", "fxsr", "mmx", "cmov", "x87"};  // x86-64 itself
  auto off = [&](const char* name) { return std::find(disabled.begin(), disabled.end(), name) != disabled.end(); };
  for (const Feature& f : kFeatures) {
    if (!__get_cpuid_count(f.leaf, f.subleaf, &r[0], &r[1], &r[2], &r[3])) continue;
    if (!(r[f.reg] >> f.bit & 1) || off(f.name)) continue;
    if ((f.state == kAvx && !avx) || (f.state == kAvx512 && !avx512) || (f.state == kAmx && !amx)) continue;
    if (f.state == kAmx) {
      if (amx_asked < 0) amx_asked = amx_permitted() ? 1 : 0;
      if (!amx_asked) continue;
    }
    found.push_back(f.name);
  }
  return found;
}

}  // namespace

const std::vector<std::string>& cpu_features() {
  static const std::vector<std::string> features = detect();
  return features;
}

void require_isa(const std::vector<std::string>& isa, const std::string& target) {
  const auto& have = cpu_features();
  std::string missing;
  for (const std::string& name : isa)
    if (std::find(have.begin(), have.end(), normal(name)) == have.end())
      missing += (missing.empty() ? "" : ", ") + name;
  if (!missing.empty())
    fail(
        "this artifact was compiled for '%s' and cannot run here: this machine lacks %s (or the operating system does "
        "not enable it). Compile it for a smaller target, for example target=\"cpu:x86-64-v3\".",
        target.c_str(), missing.c_str());
}

}  // namespace effc_rt
