// Plans: what a program's sizes, strides and addresses are for one binding of its symbols.
#include <algorithm>
#include <numeric>

#include "program.hpp"
#include "exec.hpp"

namespace effc_rt {

namespace {

constexpr size_t kMaxPlans = 64;     // per program; the least recently used goes
constexpr size_t kTryMore = 1500;  // blocks up to which further orders are tried
constexpr size_t kTryAll = 500;    // and both gaps for each
constexpr int64_t kFarther = 16;    // how much faster memory is than the disk of a far memory: 10 GB/s to 0.6
constexpr int64_t kOperations = 10; // in the time that a byte of memory takes
constexpr int kImprove = 24;        // and the best of them improved, so often at most

bool together(const Block& a, const Block& b) { return a.first <= b.last && b.first <= a.last; }

// Greedy placement in the given order: each block into the lowest, or the tightest, gap that its neighbours in time
// leave.
int64_t place(std::vector<Block>& blocks, const std::vector<int>& order, bool tightest) {
  std::vector<int> placed;  // by offset
  placed.reserve(order.size());
  int64_t total = 0;
  for (int b : order) {
    Block& block = blocks[size_t(b)];
    if (block.at < 0) {
      int64_t best = -1, best_gap = INT64_MAX, end = 0;
      for (int o : placed) {
        const Block& other = blocks[size_t(o)];
        if (!together(other, block)) continue;
        int64_t gap = other.at - end;
        if (gap >= block.bytes && gap < best_gap) {
          best = end;
          best_gap = gap;
          if (!tightest) break;
        }
        end = std::max(end, add(other.at, other.bytes));
      }
      block.at = best >= 0 ? best : end;
    } else {
      for (int o : placed) {
        const Block& other = blocks[size_t(o)];
        if (together(block, other) && other.at < add(block.at, block.bytes) && block.at < add(other.at, other.bytes))
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

// Orders that depend on this program's sizes alone, those of passes/memory/plan.py: by size, by size times lifetime, by
// lifetime, by time, and by breadth, the times of most live bytes first.
constexpr int kOrders = 5;

std::vector<int> ordered(const std::vector<Block>& blocks, int by, int steps) {
  std::vector<double> key(blocks.size());  // the largest first
  if (by == 4) {
    std::vector<double> live(size_t(steps) + 2, 0);
    for (const Block& b : blocks)
      live[size_t(b.first)] += double(b.bytes), live[size_t(b.last) + 1] -= double(b.bytes);
    std::partial_sum(live.begin(), live.end(), live.begin());
    for (size_t i = 0; i < blocks.size(); ++i)
      key[i] = *std::max_element(live.begin() + blocks[i].first, live.begin() + blocks[i].last + 1);
  } else {
    for (size_t i = 0; i < blocks.size(); ++i) {
      const Block& b = blocks[i];
      const double life = b.last - b.first + 1, bytes = double(b.bytes);
      key[i] = by == 0 ? bytes : by == 1 ? bytes * life : by == 2 ? life : -double(b.first);
    }
  }
  std::vector<int> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    const Block &x = blocks[size_t(a)], &y = blocks[size_t(b)];
    if ((x.at >= 0) != (y.at >= 0)) return x.at >= 0;
    if (key[size_t(a)] != key[size_t(b)]) return key[size_t(a)] > key[size_t(b)];
    return x.bytes != y.bytes ? x.bytes > y.bytes : x.first < y.first;
  });
  return order;
}

// The best placement of those tried so far.
struct Search {
  std::vector<Block>& blocks;
  const std::vector<Block> given;  // with what is fixed
  int64_t bound, total = INT64_MAX;
  std::vector<int> order;

  bool done() const { return total <= bound; }
  int64_t attempt(const std::vector<int>& by, bool tightest) {
    std::vector<Block> trial = given;
    int64_t reached = place(trial, by, tightest);
    if (reached < total) {
      total = reached;
      order = by;
      blocks.swap(trial);
    }
    return reached;
  }
  // What reaches the top goes first, again and again: a descent that the greedy orders leave to be made.
  void improve() {
    for (int round = 0; round < kImprove && !done(); ++round) {
      std::vector<int> next;
      for (int pass = 0; pass < 2; ++pass)
        for (int b : order)
          if ((blocks[size_t(b)].at + blocks[size_t(b)].bytes == total) == (pass == 0)) next.push_back(b);
      int64_t before = total;
      if (next == order || attempt(next, false) >= before) return;
    }
  }
};

}  // namespace

int64_t plan_arena(std::vector<Block>& blocks, int steps, const std::vector<std::vector<int>>& sequences,
                   int64_t* lower_bound) {
  std::vector<int64_t> change(size_t(steps) + 2, 0);
  bool all_fixed = true;
  for (Block& b : blocks) {
    b.bytes = align64(b.bytes);
    change[size_t(b.first)] = add(change[size_t(b.first)], b.bytes);
    change[size_t(b.last) + 1] = sub(change[size_t(b.last) + 1], b.bytes);
    all_fixed = all_fixed && b.at >= 0;
  }
  int64_t live = 0, bound = 0;
  for (int64_t c : change)
    bound = std::max(bound, live = add(live, c));
  if (lower_bound) *lower_bound = bound;

  std::vector<int> all(blocks.size());
  std::iota(all.begin(), all.end(), 0);
  if (all_fixed) return place(blocks, all, false);
  Search search{blocks, blocks, bound, INT64_MAX, {}};
  for (const std::vector<int>& sequence : sequences) {
    search.attempt(sequence, false);
    if (search.done()) return search.total;
  }
  for (int by = 0; by < kOrders && !search.done() && (by == 0 || blocks.size() <= kTryMore); ++by) {
    const std::vector<int> order = ordered(search.given, by, steps);
    search.attempt(order, true);
    if (!search.done() && blocks.size() <= kTryAll) search.attempt(order, false);
  }
  bool some_fixed = std::any_of(search.given.begin(), search.given.end(), [](const Block& b) { return b.at >= 0; });
  if (!some_fixed && blocks.size() <= kTryMore) search.improve();
  return search.total;
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

// Control flow whose sizes are known: its programs' arenas are part of this one.
void Program::plan_nested(const Instr& c, const Plan& plan, Plan::Work& work) const {
  int64_t nested = 0, carries = 0;
  try {
    for (const auto& sub : c.sub) {
      if (!sub) continue;
      std::vector<int64_t> own(sub->symbols.size(), 0);
      for (size_t s = 0; s < own.size(); ++s)
        if (sub->symbols[s].from == Symbol::kOuter) own[s] = plan.symbols[size_t(sub->symbols[s].outer)];
      nested = std::max(nested, align64(sub->plan(own)->arena_bytes));
    }
  } catch (const Error&) {
    return;  // a branch that these sizes do not suit: if it is taken, its own run says so
  }
  for (int k = 0; k < c.n_carry; ++k) {
    size_t v = size_t(c.in[size_t(k)]);
    carries = add(carries, align64(mul(plan.values[v].count, kDtypes[values[v].dtype].size)));
  }
  work.nested = nested;
  work.carries = carries;
}

// The far memory: slots one after the other, each as large as what is largest there.
void Program::plan_far(Plan& plan) const {
  std::vector<int64_t> slots;
  for (size_t i = 0; i < code.size(); ++i) {
    const Instr& c = code[i];
    if (c.slot < 0) continue;
    int id = c.op == Instr::kSpill ? c.in[0] : c.out[0];
    const Value& v = values[size_t(id)];
    const Plan::Place& at = plan.values[size_t(id)];
    int64_t bytes = sub(at.hi, at.offset);
    if (v.bytes != kNoDim && v.root == id) bytes = std::max(bytes, plan.env[size_t(v.bytes)]);
    if (at.count > 0 && at.lo != at.offset) fail("the program is malformed: a spilled value with negative strides");
    if (c.op == Instr::kRefill && plan.work[size_t(c.spill)].far_bytes != bytes)
      fail("the program is malformed: instruction '%s' refills another number of bytes than were spilled", c.name.c_str());
    plan.work[i].far_bytes = bytes;
    if (slots.size() <= size_t(c.slot)) slots.resize(size_t(c.slot) + 1, 0);
    slots[size_t(c.slot)] = std::max(slots[size_t(c.slot)], add(bytes, 4095) & ~int64_t(4095));
  }
  std::vector<int64_t> at(slots.size(), 0);
  for (size_t k = 0; k < slots.size(); ++k) {
    at[k] = plan.far_bytes;
    plan.far_bytes = add(plan.far_bytes, slots[k]);
  }
  for (size_t i = 0; i < code.size(); ++i)
    if (code[i].slot >= 0) plan.work[i].far_at = at[size_t(code[i].slot)];
  if (plan.far_bytes > 0) plan_ahead(plan);
}

// Reading ahead of a refill begins where what is left to do until then takes as long as the disk does, by operations and
// bytes touched: not sooner, as the pages would be in the way of others where memory is short, which is when they are
// not there.
void Program::plan_ahead(Plan& plan) const {
  std::vector<std::pair<size_t, int>> begins;
  for (size_t i = 0; i < code.size(); ++i) {
    if (code[i].op != Instr::kRefill) continue;
    int64_t left = mul(plan.work[i].far_bytes, kFarther);
    size_t k = i;
    for (const size_t spill = size_t(code[i].spill); k > spill + 1 && left > 0;) {
      --k;
      left -= std::clamp<int64_t>(plan.env[size_t(code[k].flops)] / kOperations, 0, left);
      for (const std::vector<int>* list : {&code[k].in, &code[k].out})
        for (int v : *list)
          if (v >= 0) left -= std::min(left, sub(plan.values[size_t(v)].hi, plan.values[size_t(v)].lo));
    }
    if (left == 0 && k > 0) begins.push_back({k - 1, int(i)});  // else it was spilled just now
  }
  std::sort(begins.begin(), begins.end());
  for (auto [k, refill] : begins) {
    if (plan.work[k].ahead_count++ == 0) plan.work[k].ahead = int(plan.ahead.size());
    plan.ahead.push_back(refill);
  }
}

// First and last instruction of each root. Who sees none of a storage's elements, for these sizes, does not use it; offsets
// that are given were made for all sizes.
std::vector<std::pair<int, int>> Program::lifetimes(const Plan& plan, bool stated) const {
  std::vector<std::pair<int, int>> lives(values.size(), {-1, -1});
  if (stated) {
    for (size_t i = 0; i < values.size(); ++i)
      lives[i] = {values[i].first, values[i].last};
    return lives;
  }
  auto use = [&](int v, int at) {
    if (v < 0) return;
    const size_t root = size_t(values[size_t(v)].root);
    if (!values[size_t(v)].late && plan.values[size_t(v)].count == 0 && plan.values[root].count != 0) return;
    if (lives[root].first < 0) lives[root].first = at;
    lives[root].second = std::max(lives[root].second, at);
  };
  for (size_t i = 0; i < code.size(); ++i)
    for (const std::vector<int>* list : {&code[i].in, &code[i].out})
      for (int v : *list)
        use(v, int(i));
  for (int v : outputs)
    use(v, int(code.size()));
  for (const Commit& c : commits)
    use(c.value, int(code.size()));
  return lives;
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
  std::vector<int> ids;
  std::vector<int> block_of(values.size() + code.size(), -1);  // by value, then by instruction
  bool fixed = !planned_threads || planned_threads == thread_count || (limit && thread_count < planned_threads);
  auto put = [&](int id, int64_t bytes, int first, int last, int64_t at) {
    block_of[id >= 0 ? size_t(id) : values.size() + size_t(-1 - id)] = int(blocks.size());
    blocks.push_back({bytes, first, last, fixed ? at : -1});
    ids.push_back(id);
  };
  const bool stated = fixed && std::any_of(values.begin(), values.end(), [](const Value& v) { return v.fixed >= 0; });
  std::vector<std::pair<int, int>> lives = lifetimes(*plan, stated);
  for (size_t i = 0; i < values.size(); ++i) {
    const Value& v = values[i];
    auto [first, last] = lives[i];
    if (v.root == int(i) && v.kind == Value::kTemp && !v.late && first >= 0) put(int(i), need[i], first, last, v.fixed);
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
    work.thread_scratch = align64(work.thread_scratch);
    if (c.is_control()) plan_nested(c, *plan, work);
    int64_t bytes = add(add(align64(work.scratch), mul(work.thread_scratch, thread_count)),
                        add(std::max<int64_t>(work.nested, 0), work.carries));
    if (bytes > 0) put(-1 - int(i), bytes, int(i), int(i), c.work_at);
  }
  if (apart) {
    for (Block& b : blocks) {
      b.at = plan->arena_bytes;
      plan->arena_bytes = add(plan->arena_bytes, align64(b.bytes));
    }
  }
  std::vector<std::vector<int>> orders;
  if (!apart)
    for (const std::vector<int>& sequence : sequences) {
      std::vector<int> order;
      std::vector<char> seen(blocks.size(), 0);
      for (int id : sequence) {
        int b = block_of[id >= 0 ? size_t(id) : values.size() + size_t(-1 - id)];
        if (b >= 0 && !seen[size_t(b)]) order.push_back(b);
        if (b >= 0) seen[size_t(b)] = 1;
      }
      for (size_t b = 0; b < blocks.size(); ++b)
        if (!seen[b]) order.push_back(int(b));
      orders.push_back(std::move(order));
    }
  plan_far(*plan);
  std::vector<Block> unplaced;
  if (limit && fixed) {
    unplaced = blocks;
    for (Block& b : unplaced)
      b.at = -1;
  }
  try {
    plan->arena_bytes = plan_arena(blocks, int(code.size()), orders, &plan->lower_bound);
  } catch (const Error&) {
    if (unplaced.empty()) throw;
    blocks.swap(unplaced);  // a size at which something is larger than at the bounds that were planned for
    plan->arena_bytes = plan_arena(blocks, int(code.size()), orders, &plan->lower_bound);
  }
  if (limit && plan->arena_bytes > limit)
    fail("these sizes need %lld bytes of temporary memory, arena_budget leaves %lld: give the model smaller inputs, or "
         "compile it with a larger arena_budget",
         static_cast<long long>(plan->arena_bytes), static_cast<long long>(limit));
  for (size_t b = 0; b < blocks.size(); ++b) {
    plan->placed.push_back({ids[b], blocks[b].first, blocks[b].last, blocks[b].bytes, blocks[b].at});
    if (ids[b] >= 0) {
      plan->root_offset[size_t(ids[b])] = blocks[b].at;
    } else {
      Plan::Work& work = plan->work[size_t(-1 - ids[b])];
      work.scratch_at = blocks[b].at;
      work.thread_scratch_at = work.scratch_at + align64(work.scratch);
      work.nested_at = work.thread_scratch_at + work.thread_scratch * thread_count;
    }
  }
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
