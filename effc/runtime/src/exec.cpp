#include "exec.hpp"

#include <pthread.h>

#include <algorithm>

#include "pool.hpp"

namespace effc_rt {

namespace {

int64_t read_integer(const View& v, const char* what) {
  if (!v.data) fail("%s has no data to read its value from", what);
  switch (v.dtype) {
    case EFFC_BOOL:
    case EFFC_U8: return *reinterpret_cast<uint8_t*>(v.data);
    case EFFC_I8: return *reinterpret_cast<int8_t*>(v.data);
    case EFFC_I64:
    case EFFC_U64: {
      int64_t x;
      memcpy(&x, v.data, 8);
      return x;
    }
    case EFFC_I32: {
      int32_t x;
      memcpy(&x, v.data, 4);
      return x;
    }
    case EFFC_U32: {
      uint32_t x;
      memcpy(&x, v.data, 4);
      return x;
    }
    case EFFC_I16: {
      int16_t x;
      memcpy(&x, v.data, 2);
      return x;
    }
    case EFFC_U16: {
      uint16_t x;
      memcpy(&x, v.data, 2);
      return x;
    }
    default: fail("%s is %s, not an integer", what, kDtypes[v.dtype].name);
  }
}

}  // namespace

// EFFC_POISON=1: memory of a run starts as NaN in every float type, so that what is read before it is written shows.
constexpr int kPoison = 0xff;
bool poisoned() {
  const char* text = getenv("EFFC_POISON");
  return text && *text && strcmp(text, "0") != 0;
}

std::mutex& short_lock() {
  static std::mutex* lock = [] {
    // A child of fork() must find the lists that this guards whole, and the lock free.
    pthread_atfork([] { short_lock().lock(); }, [] { short_lock().unlock(); }, [] { short_lock().unlock(); });
    return new std::mutex;
  }();
  return *lock;
}

char* Session::state(int index) {
  if (states.empty()) states.assign(linker.states.size(), nullptr);
  char*& p = states[size_t(index)];
  if (!p) {
    const StateInfo& info = linker.states[size_t(index)];
    p = static_cast<char*>(alloc_bytes(info.nbytes));
    if (info.init) {
      memcpy(p, info.init, size_t(info.nbytes));
    } else {
      memset(p, 0, size_t(info.nbytes));
    }
  }
  return p;
}

void Session::release() {
  for (char*& p : states) {
    free_bytes(p);
    p = nullptr;
  }
}

Heap::~Heap() {
  for (Entry& e : entries_)
    free_bytes(e.p);
}

char* Heap::take(int64_t bytes) {
  Entry* best = nullptr;
  for (Entry& e : entries_)
    if (!e.used && e.size >= bytes && e.size / 4 <= bytes + 4096 && (!best || e.size < best->size)) best = &e;
  if (!best) {
    entries_.push_back({static_cast<char*>(alloc_bytes(bytes)), std::max<int64_t>(bytes, 64), false});
    best = &entries_.back();
    total_ += best->size;
  }
  best->used = true;
  if (poison) memset(best->p, kPoison, size_t(best->size));
  used_ += best->size;
  peak_ = std::max(peak_, used_);
  return best->p;
}

void Heap::give(char* p) {
  for (Entry& e : entries_)
    if (e.p == p && e.used) {
      e.used = false;
      used_ -= e.size;
      return;
    }
}

void Heap::reset() {
  for (Entry& e : entries_)
    e.used = false;
  if (total_ > 2 * peak_ + (1 << 20)) {  // sizes that changed from run to run must not add up
    for (Entry& e : entries_)
      free_bytes(e.p);
    entries_.clear();
    total_ = 0;
  }
  used_ = peak_ = 0;
}

// The table of services that kernels call.
struct Services {
  static RunState& state(void* run) { return *static_cast<RunState*>(run); }
  static void parallel_for(void* run, int64_t n, int64_t grain, effc_task_fn fn, void* arg) {
    effc_rt::parallel_for(state(run).threads, n, grain, fn, arg);
  }
  static int32_t num_threads(void* run) { return state(run).threads; }
  static int32_t alloc_out(const effc_call* call, int32_t i, int32_t rank, const int64_t* shape) {
    auto* record = const_cast<CallRecord*>(reinterpret_cast<const CallRecord*>(call));
    try {
      if (i < 0 || i >= call->n_out) effc_rt::fail("a kernel allocated an output that it does not have");
      int v = record->instr->out[size_t(i)];
      const Value& value = record->frame->program_.values[size_t(v)];
      if (!value.dyn || rank != value.rank)
        effc_rt::fail("a kernel allocated an output that the program does not declare so");
      int64_t strides[EFFC_MAX_RANK];
      for (int k = 0; k < rank; ++k)
        if (shape[k] < 0) effc_rt::fail("a kernel allocated an output of negative size");
      int64_t bytes = mul(row_major(rank, shape, strides), kDtypes[value.dtype].size);
      record->frame->set_dynamic(v, rank, shape, nullptr);
      (void)bytes;
      const_cast<effc_tensor&>(call->out[i]) = record->frame->tensor(v);
      return 0;
    } catch (const std::exception& e) {
      report(call, e.what());
      return 1;
    }
  }
  static void bind_symbol(const effc_call* call, int32_t i, int64_t value) {
    auto* record = const_cast<CallRecord*>(reinterpret_cast<const CallRecord*>(call));
    try {
      if (i < 0 || size_t(i) >= record->instr->bind.size())
        effc_rt::fail("a kernel bound a symbol that it does not define");
      record->frame->bind_late(record->instr->bind[size_t(i)], value);
    } catch (const std::exception& e) {
      report(call, e.what());
    }
  }
  static void report(const effc_call* call, const std::string& text) {
    RunState& run = state(call->run);
    std::lock_guard<std::mutex> guard(run.error_lock);
    if (!run.failed.load(std::memory_order_relaxed)) run.error = text;
    run.failed.store(true, std::memory_order_release);
  }
  static void fail(const effc_call* call, const char* fmt, ...) __attribute__((format(printf, 2, 3))) {
    va_list args;
    va_start(args, fmt);
    std::string text = format_v(fmt, args);
    va_end(args);
    report(call, text.empty() ? "a kernel failed" : text);
  }
  static uint64_t rng_reserve(void* run, uint64_t n, uint64_t* seed) {
    Session& session = *state(run).session;
    if (seed) *seed = session.seed.load(std::memory_order_relaxed);
    return session.counter.fetch_add(n, std::memory_order_relaxed);
  }
};

const effc_api kApi = {EFFC_ABI_VERSION,      Services::parallel_for, Services::num_threads, Services::alloc_out,
                       Services::bind_symbol, Services::fail,         Services::rng_reserve};

Frame::Frame(Program& program, RunState& run) : program_(program), run_(run) {
  g_allocs.fetch_add(1, std::memory_order_relaxed);
  const Program& p = program;
  symbols_.assign(p.symbols.size(), 0);
  roots_.assign(p.values.size(), nullptr);
  slots_.resize(size_t(p.num_slots));
  calls_.resize(p.code.size());
  input_copies_ = std::vector<Buffer>(p.inputs.size());
  control_.assign(p.code.size(), -1);
  int n_control = 0;
  for (size_t i = 0; i < p.code.size(); ++i)
    if (p.code[i].is_control()) control_[i] = n_control++;
  controls_ = std::vector<Control>(size_t(n_control));
  poison_ = own_heap_.poison = poisoned();
  children_.resize(2 * size_t(n_control));
  late_index_.assign(p.values.size(), -1);
  if (p.has_late) {
    for (size_t v = 0; v < p.values.size(); ++v) {
      if (!p.values[v].late) continue;
      late_index_[v] = int(late_.size());
      late_.emplace_back();
    }
  }
}

void Frame::bind(const View* inputs, const Frame* parent) {
  const Program& p = program_;
  auto name = [&](size_t i) {
    return i < p.input_names.size() ? "input '" + p.input_names[i] + "'" : "operand " + std::to_string(i);
  };
  bool same = plan_ != nullptr;
  for (size_t i = 0; i < p.inputs.size(); ++i) {
    if (p.inputs[i] < 0) continue;
    const Value& v = p.values[size_t(p.inputs[i])];
    const View& in = inputs[i];
    if (in.dtype != v.dtype)
      fail("%s has dtype %s, the model was compiled for %s", name(i).c_str(),
           in.dtype >= 0 && in.dtype < kNumDtypes ? kDtypes[in.dtype].name : "?", kDtypes[v.dtype].name);
    if (in.rank != v.rank)
      fail("%s has rank %d (shape %s), the model was compiled for rank %d: %s", name(i).c_str(), in.rank,
           shape_text(std::max(0, std::min(in.rank, EFFC_MAX_RANK)), in.shape).c_str(), v.rank,
           p.dims_text(v.shape).c_str());
  }
  for (size_t k = 0; k < p.symbols.size(); ++k) {
    const Symbol& s = p.symbols[k];
    int64_t value = 0;
    if (s.from == Symbol::kLate) continue;
    if (s.from == Symbol::kOuter) {
      size_t outer = size_t(s.outer);
      if (parent->program_.symbols[outer].from == Symbol::kLate) {
        if (!parent->known_symbols_[outer]) fail("control flow uses the size '%s' before it is known", s.name.c_str());
        value = parent->late_symbols_[outer];
      } else {
        value = parent->symbols_[outer];
      }
    } else {
      size_t i = size_t(s.input);
      const View& in = inputs[i];
      if (s.from == Symbol::kInputValue) {
        for (int d = 0; d < in.rank; ++d)
          if (in.shape[d] != 1) fail("%s decides a size and must hold one integer", name(i).c_str());
        value = read_integer(in, name(i).c_str());
      } else {
        int64_t rest = sub(in.shape[s.dim], s.add);
        if (rest % s.mul != 0)
          fail("%s: dim %d is %lld, which is not of the form %s that the model was compiled for", name(i).c_str(),
               s.dim, static_cast<long long>(in.shape[s.dim]),
               p.dims.text(p.values[size_t(p.inputs[i])].shape[size_t(s.dim)], p.symbol_names).c_str());
        value = rest / s.mul;
      }
      if (value < s.lo || value > s.hi) {
        std::string range = s.hi == INT64_MAX
                                ? format("at least %lld", static_cast<long long>(s.lo))
                                : format("%lld to %lld", static_cast<long long>(s.lo), static_cast<long long>(s.hi));
        std::string what = s.from == Symbol::kInputValue ? "the value" : format("dim %d", s.dim);
        fail("%s: %s is %lld, but the model was compiled for %s = %s", name(i).c_str(), what.c_str(),
             static_cast<long long>(s.from == Symbol::kInputValue ? value : in.shape[s.dim]), s.name.c_str(),
             range.c_str());
      }
    }
    if (symbols_[k] != value) same = false;
    symbols_[k] = value;
  }
  bool fresh = !same || plan_->symbols != symbols_;
  std::shared_ptr<const Plan> next = fresh ? program_.plan(symbols_) : plan_;
  for (size_t i = 0; i < p.inputs.size(); ++i) {
    int id = p.inputs[i];
    if (id < 0) continue;
    const Plan::Place& want = next->values[size_t(id)];
    for (int d = 0; d < inputs[i].rank; ++d)
      if (inputs[i].shape[d] != want.shape[d])
        fail("%s has shape %s, the model was compiled for %s%s", name(i).c_str(),
             shape_text(inputs[i].rank, inputs[i].shape).c_str(), p.dims_text(p.values[size_t(id)].shape).c_str(),
             p.symbols.empty() ? "" : (", here " + shape_text(inputs[i].rank, want.shape)).c_str());
  }
  if (fresh) adopt(std::move(next));
  check(false);
}

void Frame::check(bool late) {
  if (late)
    program_.check(env_.data(), known_env_.data());
  else
    program_.check(plan_->env.data(), nullptr);
}

void Frame::adopt(std::shared_ptr<const Plan> plan) {
  plan_ = nullptr;
  base_ = nullptr;
  char* arena = nullptr;
  if (program_.parent) arena = lent_ && plan->arena_bytes <= lent_bytes_ ? lent_ : arena_.reserve(plan->arena_bytes);
  plan_ = std::move(plan);
  if (program_.parent) attach(arena);
}

void Frame::use(Workspace& workspace) {
  heap_ = &workspace.heap;
  heap_->poison = poison_;
  char* arena;
  if (run_.streamer) {  // the one that the budget has room for
    if (plan_->arena_bytes > run_.streamer->arena_bytes())
      fail("these sizes need %lld bytes of temporary memory, memory_budget leaves %lld: give the model smaller inputs, or "
           "compile it with a larger memory_budget",
           static_cast<long long>(plan_->arena_bytes), static_cast<long long>(run_.streamer->arena_bytes()));
    arena = run_.streamer->arena();
  } else {
    if (plan_->arena_bytes > workspace.arena.size) workspace.bytes.store(0, std::memory_order_relaxed);
    arena = workspace.arena.reserve(plan_->arena_bytes);
    workspace.bytes.store(workspace.arena.size, std::memory_order_relaxed);
  }
  if (plan_->far_bytes > 0) far_.reserve(plan_->far_bytes, *run_.far);
  if (arena != base_) attach(arena);
}

// Points everything that depends on sizes at the plan and the arena: once per change of either, not once per run.
void Frame::attach(char* arena) {
  const Program& p = program_;
  for (size_t v = 0; v < p.values.size(); ++v) {
    const Value& value = p.values[v];
    if (value.root != int(v)) continue;
    roots_[v] = nullptr;
    if (value.kind == Value::kConst) roots_[v] = const_cast<char*>(reinterpret_cast<const char*>(value.data));
    if (value.kind == Value::kTemp && !value.late) roots_[v] = arena + plan_->root_offset[v];
  }
  for (size_t i = 0; i < p.code.size(); ++i) {
    const Instr& c = p.code[i];
    size_t slot = size_t(c.first_slot);
    for (const std::vector<int>* list : {&c.in, &c.out})
      for (int v : *list) {
        effc_tensor& t = slots_[slot++];
        if (v < 0) {
          t = {nullptr, 0, -1, nullptr, nullptr};
          continue;
        }
        const Value& value = p.values[size_t(v)];
        const Plan::Place& at = plan_->values[size_t(v)];
        char* root = roots_[size_t(value.root)];
        if (const Value& owner = p.values[size_t(value.root)]; owner.segment >= 0) root = const_cast<char*>(streamed(i, owner));
        t = {root ? root + at.offset : nullptr, value.dtype, value.rank, at.shape, at.strides};
      }
    const Plan::Work& work = plan_->work[i];
    CallRecord& r = calls_[i];
    r.frame = this;
    r.instr = &c;
    r.call = {&kApi,
              &run_,
              int32_t(c.in.size()),
              int32_t(c.n_own),
              int32_t(c.out.size()),
              int32_t(c.attrs.size()),
              int32_t(c.fattrs.size()),
              slots_.data() + c.first_slot,
              slots_.data() + c.first_slot + c.in.size(),
              plan_->attrs.data() + work.attr,
              c.fattrs.data(),
              work.scratch ? arena + work.scratch_at : nullptr,
              work.scratch,
              work.thread_scratch ? arena + work.thread_scratch_at : nullptr,
              work.thread_scratch,
              c.epilogue};
  }
  base_ = arena;
  for (size_t i = 0; i < p.code.size(); ++i)
    if (control_[i] >= 0)
      for (size_t k = 0; k < 2; ++k)
        if (Frame* f = children_[2 * size_t(control_[i]) + k].get()) lend_to(i, *f);
}

void Frame::lend(char* arena, int64_t bytes) {
  if (arena != lent_) plan_ = nullptr;  // all addresses change: the next bind() works them out
  lent_ = arena;
  lent_bytes_ = bytes;
}

void Frame::lend_to(size_t i, Frame& child) {
  const Plan::Work& work = plan_->work[i];
  child.lend(work.nested > 0 ? base_ + work.nested_at : nullptr, work.nested);
}

void Frame::run(const View* inputs, Target* outputs) {
  Program& p = program_;
  outputs_ = outputs;
  run_.failed.store(false, std::memory_order_relaxed);
  if (poison_) memset(base_, kPoison, size_t(plan_->arena_bytes));
  if (plan_->far_bytes > 0) far_.mine(*run_.far);
  for (size_t v = 0; v < p.values.size() && p.has_late; ++v)
    if (p.values[v].late && p.values[v].root == int(v)) roots_[v] = nullptr;
  if (p.has_late) {
    heap_->reset();
    for (LateValue& v : late_)
      v.resolved = false;
    late_symbols_ = symbols_;
    known_symbols_.assign(p.symbols.size(), 0);
    for (size_t s = 0; s < p.symbols.size(); ++s)
      known_symbols_[s] = p.symbols[s].from != Symbol::kLate;
    env_ = plan_->env;
    known_env_.resize(p.dims.size());
    for (size_t d = 0; d < p.dims.size(); ++d)
      known_env_[d] = !p.dims.late(Dim(d));
  }
  for (size_t v = 0; v < p.values.size(); ++v) {
    const Value& value = p.values[v];
    if (value.root != int(v)) continue;
    if (value.kind == Value::kInput) {
      const View& in = inputs[value.index];
      const Plan::Place& at = plan_->values[v];
      int item = kDtypes[value.dtype].size;
      bool aligned = reinterpret_cast<uintptr_t>(in.data) % uintptr_t(std::min(item, 8)) == 0;
      if (at.count == 0 || (aligned && is_row_major(in.rank, in.shape, in.strides))) {
        roots_[v] = in.data;
      } else {
        if (!in.data) fail("an input has no data");
        roots_[v] = input_copies_[size_t(value.index)].reserve(at.count * item);
        copy_strided(in.rank, in.shape, item, roots_[v], at.strides, in.data, in.strides);
      }
    } else if (value.kind == Value::kOutput && !value.late) {
      Target& t = outputs[value.index];
      const Plan::Place& at = plan_->values[v];
      claim(t, value, at.shape, at.count * kDtypes[value.dtype].size);
      roots_[v] = t.data;
    } else if (value.kind == Value::kState) {
      roots_[v] = run_.session->state(value.index);
    }
  }
  for (const auto& [slot, v] : p.external_slots) {
    char* root = roots_[size_t(p.values[size_t(v)].root)];
    slots_[size_t(slot)].data = root ? root + plan_->values[size_t(v)].offset : nullptr;
  }
  Streamer* streamer = run_.streamer && !p.parent ? run_.streamer : nullptr;
  if (streamer) {
    for (size_t i = 0; i < p.code.size(); ++i) {
      streamer->need(p, i);
      uint64_t start = now_ns();
      step(i);
      if (run_.profile) count(i, now_ns() - start);
      streamer->done(i);
    }
  } else if (run_.profile) {
    for (size_t i = 0; i < p.code.size(); ++i) {
      uint64_t start = now_ns();
      step(i);
      count(i, now_ns() - start);
    }
  } else {
    for (size_t i = 0; i < p.code.size(); ++i)
      step(i);
  }
  finish_outputs(outputs);
  commit(inputs);
}

void Frame::count(size_t i, uint64_t ns) {
  const Instr& c = program_.code[i];
  ProfileSlot& slot = run_.profile[c.profile_id];
  slot.ns.fetch_add(ns, std::memory_order_relaxed);
  slot.calls.fetch_add(1, std::memory_order_relaxed);
  const int64_t* env = program_.has_late ? env_.data() : plan_->env.data();
  slot.flops.fetch_add(std::max<int64_t>(env[c.flops], 0), std::memory_order_relaxed);
  slot.bytes.fetch_add(std::max<int64_t>(env[c.bytes], 0), std::memory_order_relaxed);
}

// Where an instruction finds a weight that is not mapped, less its offset.
const char* Frame::streamed(size_t step, const Value& root) const {
  if (const char* p = run_.streamer->resident(root.segment)) return p + root.segment_offset;
  for (int k : program_.step_loads[step]) {
    const StreamLoad& l = program_.loads[size_t(k)];
    if (l.segment == root.segment) return run_.streamer->window() + l.at + root.segment_offset;
  }
  fail("the program is malformed: instruction '%s' uses weights that nobody loads", program_.code[step].name.c_str());
}

void Frame::rows(size_t i) {
  const Instr& c = program_.code[i];
  const effc_tensor &index = slots_[size_t(c.first_slot)], &out = slots_[size_t(c.first_slot) + 1];
  int64_t total = 0, count = 1, room = kDtypes[out.dtype].size;
  for (const auto& table : c.tables)
    total += table.second;
  for (int d = 0; d < index.rank; ++d)
    count *= index.shape[d];
  for (int d = 0; d < out.rank; ++d)
    room *= out.shape[d];
  if (!is_row_major(index.rank, index.shape, index.strides) || !is_row_major(out.rank, out.shape, out.strides) ||
      room != mul(count, c.row_bytes))
    fail("the program is malformed: rows [in %s]", c.name.c_str());
  for (int64_t k = 0; k < count; ++k) {
    int64_t row = index.dtype == EFFC_I64 ? static_cast<const int64_t*>(index.data)[k]
                                          : static_cast<const int32_t*>(index.data)[k];
    if (row < -total || row >= total)
      fail("take: index %lld is out of range for dim 0 of size %lld [in %s%s%s]", static_cast<long long>(row),
           static_cast<long long>(total), c.name.c_str(), c.loc.empty() ? "" : " at ", c.loc.c_str());
    if (row < 0) row += total;
    size_t t = 0;
    for (; row >= c.tables[t].second; ++t)
      row -= c.tables[t].second;
    run_.streamer->copy(c.tables[t].first, row * c.row_bytes, c.row_bytes,
                        static_cast<char*>(out.data) + k * c.row_bytes);
  }
  run_.streamer->count_rows(count);
}

void Frame::copy_far(size_t i) {
  const Instr& c = program_.code[i];
  const Plan::Work& work = plan_->work[i];
  char* data = static_cast<char*>(slots_[size_t(c.first_slot)].data);
  uint64_t start = now_ns();
  if (c.op == Instr::kSpill) {
    far_.write(work.far_at, data, work.far_bytes);
  } else {
    far_.read(work.far_at, data, work.far_bytes);
  }
  FarCounts& counts = *run_.far;
  (c.op == Instr::kSpill ? counts.spills : counts.refills).fetch_add(1, std::memory_order_relaxed);
  (c.op == Instr::kSpill ? counts.spilled : counts.refilled).fetch_add(uint64_t(work.far_bytes), std::memory_order_relaxed);
  counts.ns.fetch_add(now_ns() - start, std::memory_order_relaxed);
}

void Frame::read_ahead(const Plan::Work& work) {
  for (int k = 0; k < work.ahead_count; ++k) {
    const Plan::Work& refill = plan_->work[size_t(plan_->ahead[size_t(work.ahead + k)])];
    int64_t asked = far_.ahead(refill.far_at, refill.far_bytes);
    if (asked) run_.far->ahead.fetch_add(uint64_t(asked), std::memory_order_relaxed);
  }
}

void Frame::step(size_t i) {
  switch (program_.code[i].op) {
    case Instr::kCall: call(i); break;
    case Instr::kIf: branch(i); break;
    case Instr::kWhile: loop(i); break;
    case Instr::kScan: scan(i); break;
    case Instr::kRows: rows(i); break;
    case Instr::kSpill:
    case Instr::kRefill: copy_far(i); break;
  }
  if (const Plan::Work& work = plan_->work[i]; work.ahead_count) read_ahead(work);
  if (program_.has_late)
    for (int v : program_.code[i].frees)
      heap_->give(roots_[size_t(v)]);
}

void Frame::call(size_t i) {
  const Instr& c = program_.code[i];
  CallRecord& r = calls_[i];
  char* scratch[2] = {nullptr, nullptr};
  if (c.late) {
    size_t slot = size_t(c.first_slot);
    for (int v : c.in) {
      if (v >= 0) slots_[slot] = tensor(v);
      ++slot;
    }
    for (int v : c.out) {
      const Value& value = program_.values[size_t(v)];
      if (value.dyn) {
        slots_[slot++] = {nullptr, value.dtype, value.rank, nullptr, nullptr};
      } else {
        define(v);
        slots_[slot++] = tensor(v);
      }
    }
    late_attrs_.clear();
    for (Dim d : c.attrs) {
      if (!known_env_[size_t(d)]) fail("instruction '%s' uses a size before it is known", c.name.c_str());
      late_attrs_.push_back(env_[size_t(d)]);
    }
    for (Dim d : {c.scratch, c.thread_scratch})
      if (!known_env_[size_t(d)]) fail("instruction '%s' uses a size before it is known", c.name.c_str());
    r.call.attr = late_attrs_.data();
    r.call.scratch_bytes = env_[size_t(c.scratch)];
    r.call.thread_scratch_bytes = align64(env_[size_t(c.thread_scratch)]);
    if (r.call.scratch_bytes < 0 || r.call.thread_scratch_bytes < 0) fail("a scratch size came out negative");
    if (r.call.scratch_bytes > 0) r.call.scratch = scratch[0] = heap_->take(r.call.scratch_bytes);
    if (r.call.thread_scratch_bytes > 0)
      r.call.thread_scratch = scratch[1] = heap_->take(mul(r.call.thread_scratch_bytes, run_.threads));
  }
  int32_t status = c.fn(&r.call);
  if (status != 0 || run_.failed.load(std::memory_order_acquire)) {
    bool told = run_.failed.exchange(false);
    std::string why = told ? run_.error : format("kernel %s failed with status %d", c.kernel.c_str(), int(status));
    fail("%s [in %s%s%s]", why.c_str(), c.name.c_str(), c.loc.empty() ? "" : " at ", c.loc.c_str());
  }
  if (c.late) {
    for (char* p : scratch)
      if (p) heap_->give(p);
    for (int v : c.out)
      if (program_.values[size_t(v)].dyn && !late_[size_t(late_index_[size_t(v)])].resolved)
        fail("kernel %s did not allocate its output", c.kernel.c_str());
    for (int s : c.bind)
      if (!known_symbols_[size_t(s)])
        fail("kernel %s did not say how large '%s' is", c.kernel.c_str(), program_.symbol_names[size_t(s)].c_str());
  }
}

}  // namespace effc_rt
