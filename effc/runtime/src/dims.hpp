// Symbolic sizes: DIM expressions of a program, compiled to one table that is evaluated front to back.
#pragma once
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "common.hpp"
#include "json.hpp"

namespace effc_rt {

using Dim = int32_t;  // index into a DimTable
constexpr Dim kNoDim = -1;
// The value of an expression that divides by zero: harmless unless used (as a negative size, it is refused).
constexpr int64_t kUndefined = INT64_MIN;

class DimTable {
 public:
  enum Op : uint8_t { kConst, kSymbol, kAdd, kSub, kMul, kFloorDiv, kMod, kMax, kMin };
  struct Expr {
    Op op;
    bool late;      // depends on a symbol that only an instruction binds
    Dim a, b;       // operands; always earlier in the table
    int64_t value;  // kConst: the number; kSymbol: the symbol's index
  };

  // `find_symbol` maps a name to (index, late) and throws for an unknown one.
  template <class FindSymbol>
  Dim parse(const Json& j, FindSymbol&& find_symbol, int depth = 0) {
    if (j.is_int()) return constant(j.i);
    if (j.is_string()) {
      std::pair<int, bool> s = find_symbol(j.s);
      return intern({kSymbol, s.second, kNoDim, kNoDim, s.first});
    }
    if (!j.is_array() || j.items.size() != 3 || !j.items[0].is_string() || depth > Json::kMaxDepth)
      fail("the manifest holds a malformed dimension expression");
    Op op = op_from_name(j.items[0].s);
    Dim a = parse(j.items[1], find_symbol, depth + 1), b = parse(j.items[2], find_symbol, depth + 1);
    return combine(op, a, b);
  }
  Dim constant(int64_t v) { return intern({kConst, false, kNoDim, kNoDim, v}); }
  Dim combine(Op op, Dim a, Dim b);

  size_t size() const { return exprs_.size(); }
  const Expr& operator[](Dim d) const { return exprs_[size_t(d)]; }
  bool late(Dim d) const { return exprs_[size_t(d)].late; }
  bool is_const(Dim d) const { return exprs_[size_t(d)].op == kConst; }
  // Text for messages, with symbol names.
  std::string text(Dim d, const std::vector<std::string>& symbols) const;

  // Evaluates every expression that is not late. `symbols` holds the values; `env` gets size() numbers.
  void evaluate(const int64_t* symbols, int64_t* env) const;
  // Evaluates late expressions as far as `known` symbols allow; env_known marks what is valid.
  void evaluate_late(const int64_t* symbols, const uint8_t* known, int64_t* env, uint8_t* env_known) const;

 private:
  static Op op_from_name(const std::string& name);
  static int64_t apply(Op op, int64_t a, int64_t b);
  Dim intern(const Expr& e);
  std::vector<Expr> exprs_;
  std::map<std::tuple<int, Dim, Dim, int64_t>, Dim> index_;
};

}  // namespace effc_rt
