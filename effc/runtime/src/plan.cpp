// Plans: what a program's sizes, strides and addresses are for one binding of its symbols.
#include <algorithm>
#include <numeric>

#include "program.hpp"
#include "exec.hpp"

namespace effc_rt {

namespace {

constexpr size_t kMaxPlans = 64;     // per program; the least recently used goes
constexpr size_t kTrySecond = 1500;  // blocks up to which a second order is tried

// Greedy placement in the given order: each block into the tightest gap that its neighbours in time leave.
int64_t place(std::vector<Block>& blocks, const std::vector<int>& order) {
  std::vector<int> placed;  // by offset
  placed.reserve(order.size());
  int64_t total = 0;
  for (int b : order) {
    Block& block = blocks[size_t(b)];
    if (block.at < 0) {
      int64_t best = -1, best_gap = INT64_MAX, end = 0;
      for (int o : placed) {
        const Block& other = blocks[size_t(o)];
        if (other.last < block.first || other.first > block.last) continue;
        int64_t gap = other.at - end;
        if (gap >= block.bytes && gap < best_gap) {
          best = end;
          best_gap = gap;
        }
        end = std::max(end, add(other.at, other.bytes));
      }
      block.at = best >= 0 ? best : end;
    } else {
      for (int o : placed) {
        const Block& other = blocks[size_t(o)];
        bool together = !(other.last < block.first || other.first > block.last);
        if (together && other.at < add(block.at, block.bytes) && block.at < add(other.at, other.bytes))
          fail("the program's static memory plan lets two values overlap");
      }
    }
    total = std::max(total, add(block.at, block.bytes));
    if (block.bytes > 0) {
      auto at = std::upper_bound(placed.begin(), placed.end(), block.at,
                                 [&](int64_t offset, int o) { return offset < blocks[size_t(o)].at; });
      placed.insert(at, b);
    }
  }
  return total;
}

}  // namespace

int64_t plan_arena(std::vector<Block>& blocks, int steps, int64_t* lower_bound) {
  std::vector<int64_t> change(size_t(steps) + 2, 0);
  for (Block& b : blocks) {
    b.bytes = align64(b.bytes);
    change[size_t(b.first)] = add(change[size_t(b.first)], b.bytes);
    change[size_t(b.last) + 1] = sub(change[size_t(b.last) + 1], b.bytes);
  }
  int64_t live = 0, bound = 0;
  for (int64_t c : change)
    bound = std::max(bound, live = add(live, c));
  if (lower_bound) *lower_bound = bound;

  std::vector<int> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  auto before = [&](auto less) {
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      const Block &x = blocks[size_t(a)], &y = blocks[size_t(b)];
      if ((x.at >= 0) != (y.at >= 0)) return x.at >= 0;
      return less(x, y);
    });
  };
  std::vector<Block> second = blocks;
  before([](const Block& x, const Block& y) { return x.bytes != y.bytes ? x.bytes > y.bytes : x.first < y.first; });
  int64_t total = place(blocks, order);
  if (total > bound && blocks.size() <= kTrySecond) {
    // By size times lifetime: better where a long-lived middle-sized block would otherwise split the space.
    std::vector<Block> saved = std::move(blocks);
    blocks = std::move(second);
    before([](const Block& x, const Block& y) {
      double a = double(x.bytes) * (x.last - x.first + 1), b = double(y.bytes) * (y.last - y.first + 1);
      return a != b ? a > b : x.first < y.first;
    });
    int64_t other = place(blocks, order);
    if (other >= total) {
      blocks = std::move(saved);
    } else {
      total = other;
    }
  }
  return total;
}

void fill_place(const Value& v, const int64_t* env, const Plan::Place* base_place, int64_t* shape, int64_t* strides,
                Plan::Place& place) {
  place.shape = shape;
  place.strides = strides;
  for (int i = 0; i < v.rank; ++i) {
    shape[i] = env[v.shape[size_t(i)]];
    if (shape[i] < 0) fail("a size came out negative: %lld", static_cast<long long>(shape[i]));
  }
  place.count = row_major(v.rank, shape, strides);
  if (v.has_strides)
    for (int i = 0; i < v.rank; ++i)
      strides[i] = env[v.strides[size_t(i)]];
  place.row_major = !v.has_strides || is_row_major(v.rank, shape, strides);
  int64_t item = kDtypes[v.dtype].size;
  place.offset = base_place ? base_place->offset : 0;
  if (v.kind == Value::kView) place.offset = add(place.offset, mul(env[v.offset], item));
  place.lo = place.hi = place.offset;
  if (place.count > 0) {
    place.hi = add(place.hi, item);
    for (int i = 0; i < v.rank; ++i) {
      int64_t reach = mul(mul(shape[i] - 1, strides[i]), item);
      (reach < 0 ? place.lo : place.hi) = add(reach < 0 ? place.lo : place.hi, reach);
    }
  }
}

void Program::check(const int64_t* env, const uint8_t* known) const {
  for (const Check& c : checks) {
    bool is_late = dims.late(c.lhs) || dims.late(c.rhs);
    if (is_late != (known != nullptr)) continue;
    if (known && !(known[size_t(c.lhs)] && known[size_t(c.rhs)])) continue;
    int64_t a = env[c.lhs], b = env[c.rhs];
    bool ok = c.op == Check::kEq ? a == b : c.op == Check::kNe ? a != b : c.op == Check::kLe ? a <= b : a >= b;
    if (!ok) {
      static const char* const kText[] = {"==", "!=", "<=", ">="};
      fail("%s (%s %s %s does not hold: %lld and %lld)",
           c.message.empty() ? "the inputs' sizes do not fit together" : c.message.c_str(),
           dims.text(c.lhs, symbol_names).c_str(), kText[c.op], dims.text(c.rhs, symbol_names).c_str(),
           static_cast<long long>(a), static_cast<long long>(b));
    }
  }
}

std::shared_ptr<const Plan> Program::make_plan(const std::vector<int64_t>& symbol_values) const {
  auto plan = std::make_shared<Plan>();
  g_allocs.fetch_add(1, std::memory_order_relaxed);
  plan->symbols = symbol_values;
  plan->env.resize(dims.size());
  dims.evaluate(symbol_values.data(), plan->env.data());
  const int64_t* env = plan->env.data();

  size_t total = 0;
  for (const Value& v : values)
    total += 2 * size_t(v.rank);
  plan->pool.resize(total + 1);
  plan->values.resize(values.size());
  plan->root_offset.assign(values.size(), 0);
  std::vector<int64_t> need(values.size(), 0);  // bytes of each root
  int64_t* pool = plan->pool.data();
  for (int id : order) {
    size_t i = size_t(id);
    const Value& v = values[i];
    Plan::Place& place = plan->values[i];
    int64_t *shape = pool, *strides = pool + v.rank;
    pool += 2 * v.rank;
    if (v.late) {
      place = {shape, strides, 0, 0, 0, 0, false};
      continue;
    }
    fill_place(v, env, v.base >= 0 ? &plan->values[size_t(v.base)] : nullptr, shape, strides, place);
    const Value& root = values[size_t(v.root)];
    int64_t limit = INT64_MAX;
    if (root.kind == Value::kConst || root.kind == Value::kState) {
      limit = root.data_bytes;
    } else if (root.kind != Value::kTemp) {
      limit = mul(plan->values[size_t(v.root)].count, kDtypes[root.dtype].size);
    }
    if (place.count > 0 && (place.lo < 0 || place.hi > limit)) {
      check(env, nullptr);  // a relation of sizes that does not hold is the caller's to repair, and says more
      fail("the program is malformed: value %d reaches outside its storage", int(i));
    }
    if (place.count > 0) need[size_t(v.root)] = std::max(need[size_t(v.root)], place.hi);  // an empty view may lie anywhere
    if (v.bytes != kNoDim) need[size_t(v.root)] = std::max(need[size_t(v.root)], env[v.bytes]);
  }

  std::vector<Block> blocks;
  std::vector<int64_t*> where;
  for (size_t i = 0; i < values.size(); ++i) {
    const Value& v = values[i];
    if (v.root != int(i) || v.kind != Value::kTemp || v.late || v.first < 0) continue;
    blocks.push_back({need[i], v.first, v.last, v.fixed});
    where.push_back(&plan->root_offset[i]);
  }
  plan->work.resize(code.size());
  for (size_t i = 0; i < code.size(); ++i) {
    const Instr& c = code[i];
    Plan::Work& work = plan->work[i];
    work.attr = int64_t(plan->attrs.size());
    for (Dim d : c.attrs) {
      if (env[d] == kUndefined) fail("instruction '%s': a size divides by zero", c.name.c_str());
      plan->attrs.push_back(env[d]);
    }
    if (c.late) continue;
    work.scratch = env[c.scratch];
    work.thread_scratch = env[c.thread_scratch];
    if (work.scratch < 0 || work.thread_scratch < 0) fail("a scratch size came out negative");
    if (work.scratch > 0) {
      blocks.push_back({work.scratch, int(i), int(i), -1});
      where.push_back(&work.scratch_at);
    }
    if (work.thread_scratch > 0) {
      work.thread_scratch = align64(work.thread_scratch);
      blocks.push_back({mul(work.thread_scratch, thread_count), int(i), int(i), -1});
      where.push_back(&work.thread_scratch_at);
    }
  }
  plan->arena_bytes = plan_arena(blocks, int(code.size()), &plan->lower_bound);
  for (size_t i = 0; i < blocks.size(); ++i)
    *where[i] = blocks[i].at;
  return plan;
}

std::shared_ptr<const Plan> Program::plan(const std::vector<int64_t>& symbol_values) {
  {
    std::lock_guard<std::mutex> guard(short_lock());
    for (auto it = plans_.begin(); it != plans_.end(); ++it) {
      if ((*it)->symbols != symbol_values) continue;
      plans_.splice(plans_.begin(), plans_, it);
      return plans_.front();
    }
  }
  std::shared_ptr<const Plan> made = make_plan(symbol_values);
  std::shared_ptr<const Plan> dropped;  // destroyed outside the lock
  std::lock_guard<std::mutex> guard(short_lock());
  for (const auto& other : plans_)
    if (other->symbols == symbol_values) return other;  // another thread was faster
  plans_.push_front(made);
  if (plans_.size() > kMaxPlans) {
    dropped = plans_.back();
    plans_.pop_back();
  }
  return made;
}

}  // namespace effc_rt
