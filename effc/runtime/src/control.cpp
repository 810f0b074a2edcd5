// Frames: if, while and scan. A nested program runs in a frame of its own, which is kept between runs.
#include <algorithm>

#include "exec.hpp"

namespace effc_rt {

Frame& Frame::child(size_t i, int slot) {
  std::unique_ptr<Frame>& frame = children_[2 * size_t(control_[i]) + size_t(slot)];
  if (!frame) frame = std::make_unique<Frame>(*program_.code[i].sub[slot], run_);
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
  std::vector<View> in;
  for (size_t k = 0; k + 1 < c.in.size(); ++k)
    in.push_back(view(c.in[k]));
  f.bind(in.data(), this);
  std::vector<Target> out;
  for (int v : c.out)
    out.push_back(target(v, c.name.c_str()));
  f.run(in.data(), out.data());
  for (size_t k = 0; k < out.size(); ++k)
    settle(c.out[k], out[k]);
}

namespace {

// Carries of a loop: two copies each, read from one while writing the other.
struct Carries {
  std::vector<char*> now, next, home;  // home: the instruction's own result
  std::vector<int64_t> bytes;
  void flip() { now.swap(next); }
  void finish() {
    for (size_t k = 0; k < now.size(); ++k)
      if (now[k] != home[k] && bytes[k] > 0) memcpy(home[k], now[k], size_t(bytes[k]));
  }
};

Carries make_carries(const std::vector<View>& initial, const std::vector<Target>& home, Buffer& spare) {
  Carries c;
  int64_t total = 0;
  for (const View& v : initial) {
    c.bytes.push_back(bytes_of(v));
    total = add(total, align64(c.bytes.back()));
  }
  char* other = spare.reserve(total);
  for (size_t k = 0; k < initial.size(); ++k) {
    const View& v = initial[k];
    if (home[k].rank != v.rank || !std::equal(v.shape, v.shape + v.rank, home[k].shape))
      fail("a loop's carry has shape %s at first and %s afterwards", shape_text(v.rank, v.shape).c_str(),
           shape_text(home[k].rank, home[k].shape).c_str());
    c.home.push_back(home[k].data);
    c.now.push_back(home[k].data);
    c.next.push_back(other);
    other += align64(c.bytes[k]);
    int64_t strides[EFFC_MAX_RANK];
    row_major(v.rank, v.shape, strides);
    if (c.bytes[k] > 0 && v.data != home[k].data)
      copy_strided(v.rank, v.shape, kDtypes[v.dtype].size, home[k].data, strides, v.data, v.strides);
  }
  return c;
}

}  // namespace

void Frame::loop(size_t i) {
  const Instr& c = program_.code[i];
  size_t n = size_t(c.n_carry);
  std::vector<View> in;
  for (int v : c.in)
    in.push_back(view(v));
  std::vector<Target> out;
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
  Carries carries = make_carries(std::vector<View>(in.begin(), in.begin() + long(n)), out, loops_[size_t(control_[i])]);
  // From here on carries are row-major.
  std::vector<int64_t> strides(n * EFFC_MAX_RANK);
  for (size_t k = 0; k < n; ++k) {
    row_major(in[k].rank, in[k].shape, &strides[k * EFFC_MAX_RANK]);
    in[k].strides = &strides[k * EFFC_MAX_RANK];
  }
  Frame &test = child(i, 0), &body = child(i, 1);
  alignas(16) char flag[16];
  for (;;) {
    for (size_t k = 0; k < n; ++k)
      in[k].data = carries.now[k];
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
      out[k].data = carries.next[k];
      out[k].allocated = false;
    }
    body.run(in.data(), out.data());
    carries.flip();
  }
  carries.finish();
}

void Frame::scan(size_t i) {
  const Instr& c = program_.code[i];
  size_t n_carry = size_t(c.n_carry), n_xs = size_t(c.n_xs), n_ys = c.out.size() - n_carry;
  int64_t length = program_.has_late ? env_[size_t(c.length)] : plan_->env[size_t(c.length)];
  std::vector<View> in;
  for (int v : c.in)
    in.push_back(view(v));
  std::vector<Target> out;
  for (int v : c.out)
    out.push_back(target(v, c.name.c_str()));
  for (const Target& t : out)
    if (!t.data) fail("the results of '%s' must have sizes that are known before it runs", c.name.c_str());
  Carries carries =
      make_carries(std::vector<View>(in.begin(), in.begin() + long(n_carry)), out, loops_[size_t(control_[i])]);
  std::vector<int64_t> strides(n_carry * EFFC_MAX_RANK);
  for (size_t k = 0; k < n_carry; ++k) {
    row_major(in[k].rank, in[k].shape, &strides[k * EFFC_MAX_RANK]);
    in[k].strides = &strides[k * EFFC_MAX_RANK];
  }
  // Slices along dim 0: one row of each x and y.
  std::vector<char*> x0(n_xs), y0(n_ys);
  std::vector<int64_t> x_step(n_xs), y_step(n_ys);
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
      in[k].data = carries.now[k];
      out[k].data = carries.next[k];
    }
    for (size_t k = 0; k < n_xs; ++k)
      in[n_carry + k].data = x0[k] ? x0[k] + at * x_step[k] : nullptr;
    for (size_t k = 0; k < n_ys; ++k)
      out[n_carry + k].data = y0[k] + at * y_step[k];
    for (Target& t : out)
      t.allocated = false;
    body.bind(in.data(), this);
    body.run(in.data(), out.data());
    carries.flip();
  }
  carries.finish();
}

}  // namespace effc_rt
