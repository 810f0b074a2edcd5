#include "dims.hpp"

#include <algorithm>

namespace effc_rt {

DimTable::Op DimTable::op_from_name(const std::string& name) {
  if (name == "+") return kAdd;
  if (name == "-") return kSub;
  if (name == "*") return kMul;
  if (name == "//") return kFloorDiv;
  if (name == "%") return kMod;
  if (name == "max") return kMax;
  if (name == "min") return kMin;
  fail("the manifest holds an unknown dimension operator '%s'", name.substr(0, 20).c_str());
}

int64_t DimTable::apply(Op op, int64_t a, int64_t b) {
  if (a == kUndefined || b == kUndefined) return kUndefined;
  switch (op) {
    case kAdd: return add(a, b);
    case kSub: return sub(a, b);
    case kMul: return mul(a, b);
    case kMax: return std::max(a, b);
    case kMin: return std::min(a, b);
    default: break;
  }
  if (b == 0) return kUndefined;
  if (b == -1) return op == kMod ? 0 : sub(0, a);
  int64_t q = a / b, r = a % b;
  bool adjust = r != 0 && ((r < 0) != (b < 0));  // C truncates, sizes floor
  return op == kMod ? (adjust ? r + b : r) : (adjust ? q - 1 : q);
}

Dim DimTable::intern(const Expr& e) {
  auto key = std::make_tuple(int(e.op), e.a, e.b, e.value);
  auto [at, fresh] = index_.emplace(key, Dim(exprs_.size()));
  if (fresh) {
    if (exprs_.size() > (1u << 24)) fail("the manifest holds too many dimension expressions");
    exprs_.push_back(e);
  }
  return at->second;
}

Dim DimTable::combine(Op op, Dim a, Dim b) {
  const Expr &x = exprs_[size_t(a)], &y = exprs_[size_t(b)];
  if (x.op == kConst && y.op == kConst) return constant(apply(op, x.value, y.value));
  return intern({op, x.late || y.late, a, b, 0});
}

std::string DimTable::text(Dim d, const std::vector<std::string>& symbols) const {
  static const char* const kNames[] = {"", "", " + ", " - ", "*", "//", " % ", "max", "min"};
  const Expr& e = exprs_[size_t(d)];
  if (e.op == kConst) return std::to_string(e.value);
  if (e.op == kSymbol) return symbols[size_t(e.value)];
  std::string a = text(e.a, symbols), b = text(e.b, symbols);
  if (e.op >= kMax) return std::string(kNames[e.op]) + "(" + a + ", " + b + ")";
  return "(" + a + kNames[e.op] + b + ")";
}

void DimTable::evaluate(const int64_t* symbols, int64_t* env) const {
  for (size_t i = 0; i < exprs_.size(); ++i) {
    const Expr& e = exprs_[i];
    if (e.late) {
      env[i] = 0;
    } else if (e.op == kConst) {
      env[i] = e.value;
    } else if (e.op == kSymbol) {
      env[i] = symbols[e.value];
    } else {
      env[i] = apply(e.op, env[e.a], env[e.b]);
    }
  }
}

void DimTable::evaluate_late(const int64_t* symbols, const uint8_t* known, int64_t* env, uint8_t* env_known) const {
  for (size_t i = 0; i < exprs_.size(); ++i) {
    const Expr& e = exprs_[i];
    if (!e.late || env_known[i]) continue;
    if (e.op == kSymbol) {
      if (!known[e.value]) continue;
      env[i] = symbols[e.value];
    } else {
      if (!env_known[e.a] || !env_known[e.b]) continue;
      env[i] = apply(e.op, env[e.a], env[e.b]);
    }
    env_known[i] = 1;
  }
}

}  // namespace effc_rt
