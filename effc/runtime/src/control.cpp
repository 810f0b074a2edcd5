// Frames: if, while and scan. A nested program runs in a frame of its own, which is kept between runs.
#include <algorithm>

#include "exec.hpp"

namespace effc_rt {

Frame& Frame::child(size_t i, int slot) {
  std::unique_ptr<Frame>& frame = children_[2 * size_t(control_[i]) + size_t(slot)];
  if (!frame) {
    frame = std::make_unique<Frame>(*program_.code[i].sub[slot], run_);
    lend_to(i, *frame);
  }
  return *frame;
}

// Where a nested program's output goes: straight into this frame's value.
Target Frame::target(int v, const char* what) {
  const Value& value = program_.values[size_t(v)];
  Target t;
  t.alloc = heap_alloc;
  t.context = this;
  if (value.dyn) {
    if (value.kind == Value::kOutput) {
      t.alloc = outputs_[value.index].alloc;
      t.context = outputs_[value.index].context;
    }
    return t;
  }
  define(v);
  View w = view(v);
  if (!is_row_major(w.rank, w.shape, w.strides))
    fail("the program is malformed: the result of '%s' is not row-major", what);
  static char empty[64];
  t.data = w.data ? w.data : empty;
  t.rank = w.rank;
  std::copy(w.shape, w.shape + w.rank, t.shape);
  return t;
}

void Frame::settle(int v, const Target& t) {
  const Value& value = program_.values[size_t(v)];
  if (!value.dyn) return;
  if (value.kind == Value::kOutput) {
    Target& mine = outputs_[value.index];
    mine.data = t.data;
    mine.allocated = t.allocated;
    mine.rank = t.rank;
    std::copy(t.shape, t.shape + t.rank, mine.shape);
  }
  set_dynamic(v, t.rank, t.shape, t.data);
}

namespace {

bool truth(const View& v) {
  if (!v.data) fail("the program is malformed: a condition without data");
  for (int i = 0; i < kDtypes[v.dtype].size; ++i)
    if (v.data[i]) return true;  // integers and bool
  return false;
}

int64_t bytes_of(const View& v) {
  int64_t n = kDtypes[v.dtype].size;
  for (int d = 0; d < v.rank; ++d)
    n = mul(n, v.shape[d]);
  return n;
}

}  // namespace

void Frame::branch(size_t i) {
  const Instr& c = program_.code[i];
  View cond = view(c.cond);
  if (bytes_of(cond) != kDtypes[cond.dtype].size) fail("the condition of '%s' must hold one element", c.name.c_str());
  Frame& f = child(i, truth(cond) ? 0 : 1);
  Control& s = control(i);
  s.in.clear();
  s.out.clear();
  for (size_t k = 0; k + 1 < c.in.size(); ++k)
    s.in.push_back(view(c.in[k]));
  f.bind(s.in.data(), this);
  for (int v : c.out)
    s.out.push_back(target(v, c.name.c_str()));
  f.run(s.in.data(), s.out.data());
  for (size_t k = 0; k < s.out.size(); ++k)
    settle(c.out[k], s.out[k]);
}

void Frame::Control::finish() const {
  for (size_t k = 0; k < now.size(); ++k)
    if (now[k] != home[k] && bytes[k] > 0) memcpy(home[k], now[k], size_t(bytes[k]));
}

// The first n operands of a loop are its carries: copied to where the results go, and row-major from here on.
void Frame::start_carries(size_t i, size_t n) {
  Control& s = control(i);
  const Plan::Work& work = plan_->work[i];
  s.bytes.clear();
  s.now.clear();
  s.next.clear();
  s.home.clear();
  int64_t total = 0;
  for (size_t k = 0; k < n; ++k) {
    s.bytes.push_back(bytes_of(s.in[k]));
    total = add(total, align64(s.bytes.back()));
  }
  bool inside = work.nested >= 0 && total <= work.carries;
  char* other = inside ? base_ + work.nested_at + work.nested : s.spare.reserve(total);
  s.strides.resize(n * EFFC_MAX_RANK);
  for (size_t k = 0; k < n; ++k) {
    View& v = s.in[k];
    const Target& home = s.out[k];
    if (home.rank != v.rank || !std::equal(v.shape, v.shape + v.rank, home.shape))
      fail("a loop's carry has shape %s at first and %s afterwards", shape_text(v.rank, v.shape).c_str(),
           shape_text(home.rank, home.shape).c_str());
    s.home.push_back(home.data);
    s.now.push_back(home.data);
    s.next.push_back(other);
    other += align64(s.bytes[k]);
    int64_t* strides = &s.strides[k * EFFC_MAX_RANK];
    row_major(v.rank, v.shape, strides);
    if (s.bytes[k] > 0 && v.data != home.data)
      copy_strided(v.rank, v.shape, kDtypes[v.dtype].size, home.data, strides, v.data, v.strides);
    v.strides = strides;
  }
}

void Frame::loop(size_t i) {
  const Instr& c = program_.code[i];
  size_t n = size_t(c.n_carry);
  Control& s = control(i);
  std::vector<View>& in = s.in;
  std::vector<Target>& out = s.out;
  in.clear();
  out.clear();
  for (int v : c.in)
    in.push_back(view(v));
  for (size_t k = 0; k < n; ++k) {
    int v = c.out[k];
    if (program_.values[size_t(v)].dyn) set_dynamic(v, in[k].rank, in[k].shape, nullptr);
    View w = program_.values[size_t(v)].dyn ? view(v) : View{};
    Target t;
    if (w.shape) {
      t.data = w.data;
      t.rank = w.rank;
      std::copy(w.shape, w.shape + w.rank, t.shape);
    } else {
      t = target(v, c.name.c_str());
    }
    out.push_back(t);
  }
  start_carries(i, n);
  Frame &test = child(i, 0), &body = child(i, 1);
  alignas(16) char flag[16];
  for (;;) {
    for (size_t k = 0; k < n; ++k)
      in[k].data = s.now[k];
    test.bind(in.data(), this);
    Target t;
    t.data = flag;
    t.alloc = heap_alloc;
    t.context = this;
    int result = test.program().outputs[0];
    const Value& verdict = test.program().values[size_t(result)];
    if (verdict.late || test.plan().values[size_t(result)].count != 1)
      fail("the condition of '%s' must hold one element", c.name.c_str());
    t.rank = verdict.rank;
    std::fill(t.shape, t.shape + t.rank, 1);
    memset(flag, 0, sizeof flag);
    test.run(in.data(), &t);
    if (std::all_of(flag, flag + sizeof flag, [](char b) { return b == 0; })) break;
    body.bind(in.data(), this);
    for (size_t k = 0; k < n; ++k) {
      out[k].data = s.next[k];
      out[k].allocated = false;
    }
    body.run(in.data(), out.data());
    s.now.swap(s.next);
  }
  s.finish();
}

void Frame::scan(size_t i) {
  const Instr& c = program_.code[i];
  size_t n_carry = size_t(c.n_carry), n_xs = size_t(c.n_xs), n_ys = c.out.size() - n_carry;
  int64_t length = program_.has_late ? env_[size_t(c.length)] : plan_->env[size_t(c.length)];
  Control& s = control(i);
  std::vector<View>& in = s.in;
  std::vector<Target>& out = s.out;
  in.clear();
  out.clear();
  for (int v : c.in)
    in.push_back(view(v));
  for (int v : c.out)
    out.push_back(target(v, c.name.c_str()));
  for (const Target& t : out)
    if (!t.data) fail("the results of '%s' must have sizes that are known before it runs", c.name.c_str());
  start_carries(i, n_carry);
  // Slices along dim 0: one row of each x and y.
  std::vector<char*>&x0 = s.x0, &y0 = s.y0;
  std::vector<int64_t>&x_step = s.x_step, &y_step = s.y_step;
  x0.resize(n_xs);
  y0.resize(n_ys);
  x_step.resize(n_xs);
  y_step.resize(n_ys);
  for (size_t k = 0; k < n_xs; ++k) {
    View& x = in[n_carry + k];
    if (x.rank < 1 || x.shape[0] != length)
      fail("scan '%s' of length %lld over an operand of another length", c.name.c_str(),
           static_cast<long long>(length));
    x0[k] = x.data;
    x_step[k] = x.strides[0] * kDtypes[x.dtype].size;
    --x.rank;
    ++x.shape;
    ++x.strides;
  }
  for (size_t k = 0; k < n_ys; ++k) {
    Target& y = out[n_carry + k];
    if (y.rank < 1 || y.shape[0] != length)
      fail("scan '%s' of length %lld into a result of another length", c.name.c_str(), static_cast<long long>(length));
    y0[k] = y.data;
    y_step[k] = kDtypes[program_.values[size_t(c.out[n_carry + k])].dtype].size;
    for (int d = 1; d < y.rank; ++d)
      y_step[k] *= y.shape[d];
    --y.rank;
    std::copy(y.shape + 1, y.shape + 1 + y.rank, y.shape);
  }
  if (length == 0) return;
  Frame& body = child(i, 0);
  for (int64_t step = 0; step < length; ++step) {
    int64_t at = c.reverse ? length - 1 - step : step;
    for (size_t k = 0; k < n_carry; ++k) {
      in[k].data = s.now[k];
      out[k].data = s.next[k];
    }
    for (size_t k = 0; k < n_xs; ++k)
      in[n_carry + k].data = x0[k] ? x0[k] + at * x_step[k] : nullptr;
    for (size_t k = 0; k < n_ys; ++k)
      out[n_carry + k].data = y0[k] + at * y_step[k];
    for (Target& t : out)
      t.allocated = false;
    body.bind(in.data(), this);
    body.run(in.data(), out.data());
    s.now.swap(s.next);
  }
  s.finish();
}

}  // namespace effc_rt
