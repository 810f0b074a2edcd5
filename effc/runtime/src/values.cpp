// Frames: operands, values with data-dependent sizes, results and write-backs.
#include <algorithm>

#include "exec.hpp"

namespace effc_rt {

const Plan::Place& Frame::place(int v) const {
  int late = late_index_[size_t(v)];
  return late < 0 ? plan_->values[size_t(v)] : late_[size_t(late)].place;
}

View Frame::view(int v) {
  const Value& value = program_.values[size_t(v)];
  if (value.late) resolve(v);
  const Plan::Place& at = place(v);
  char* root = roots_[size_t(value.root)];
  return {root ? root + at.offset : nullptr, value.dtype, value.rank, at.shape, at.strides};
}

effc_tensor Frame::tensor(int v) {
  View w = view(v);
  return {w.data, w.dtype, w.rank, w.shape, w.strides};
}

// Works out a late value once the symbols in its shape are known. Its storage must exist, or be made by define().
void Frame::resolve(int v) {
  LateValue& late = late_[size_t(late_index_[size_t(v)])];
  if (late.resolved) return;
  const Program& p = program_;
  const Value& value = p.values[size_t(v)];
  if (value.dyn) fail("a value is used before the kernel that makes it has run");
  if (value.base >= 0 && p.values[size_t(value.base)].late) resolve(value.base);
  auto known = [&](Dim d) {
    if (d != kNoDim && !known_env_[size_t(d)])
      fail("the size %s is used before it is known", p.dims.text(d, p.symbol_names).c_str());
  };
  for (Dim d : value.shape)
    known(d);
  for (Dim d : value.strides)
    known(d);
  known(value.offset);
  fill_place(value, env_.data(), value.base >= 0 ? &place(value.base) : nullptr, late.shape, late.strides, late.place);
  if (value.root != v) {
    const Value& root = p.values[size_t(value.root)];
    const Plan::Place& at = place(value.root);
    int64_t limit = root.kind == Value::kConst || root.kind == Value::kState ? root.data_bytes
                                                                             : at.count * kDtypes[root.dtype].size;
    if (root.kind == Value::kTemp) {
      limit = std::max(limit, at.hi);
      if (root.bytes != kNoDim && known_env_[size_t(root.bytes)]) limit = std::max(limit, env_[size_t(root.bytes)]);
    }
    if (late.place.count > 0 && (late.place.lo < 0 || late.place.hi > limit))
      fail("the program is malformed: value %d reaches outside its storage", v);
  }
  late.resolved = true;
}

char* Frame::heap_alloc(void* frame, int64_t bytes) { return static_cast<Frame*>(frame)->heap_->take(bytes); }

void Frame::claim(Target& t, const Value& value, const int64_t* shape, int64_t bytes) {
  if (!t.data) {
    t.data = t.alloc(t.context, bytes);
    t.allocated = true;
    t.rank = value.rank;
    std::copy(shape, shape + value.rank, t.shape);
  } else if (t.rank != value.rank || !std::equal(shape, shape + value.rank, t.shape)) {
    fail("an output has shape %s, but its array has shape %s", shape_text(value.rank, shape).c_str(),
         shape_text(t.rank, t.shape).c_str());
  }
}

// Storage for a result whose size is known by now.
void Frame::define(int v) {
  const Value& value = program_.values[size_t(v)];
  if (!value.late) return;
  int root = value.root;
  const Value& owner = program_.values[size_t(root)];
  if (owner.late && !owner.dyn && !roots_[size_t(root)]) {
    resolve(root);
    const Plan::Place& at = place(root);
    int64_t bytes = std::max(at.hi, mul(at.count, kDtypes[owner.dtype].size));
    if (owner.bytes != kNoDim) {
      if (!known_env_[size_t(owner.bytes)]) fail("the program is malformed: a buffer's size is not known in time");
      bytes = std::max(bytes, env_[size_t(owner.bytes)]);
    }
    if (owner.kind == Value::kOutput) {
      Target& t = outputs_[owner.index];
      claim(t, owner, at.shape, bytes);
      roots_[size_t(root)] = t.data;
    } else {
      roots_[size_t(root)] = heap_->take(bytes);
    }
  }
  if (root != v) resolve(v);
}

// A "dyn" value gets its sizes, and its storage unless data already holds it. A size that is a bare unbound symbol
// binds it.
void Frame::set_dynamic(int v, int rank, const int64_t* shape, char* data) {
  const Value& value = program_.values[size_t(v)];
  LateValue& late = late_[size_t(late_index_[size_t(v)])];
  if (late.resolved) fail("an output was allocated twice");
  if (rank != value.rank) fail("an output came out with rank %d instead of %d", rank, value.rank);
  for (int d = 0; d < rank; ++d) {
    Dim dim = value.shape[size_t(d)];
    const DimTable::Expr& e = program_.dims[dim];
    if (e.op == DimTable::kSymbol && !known_env_[size_t(dim)]) bind_late(int(e.value), shape[d]);
    if (known_env_[size_t(dim)] && env_[size_t(dim)] != shape[d])
      fail("an output came out with shape %s, but %s was expected", shape_text(rank, shape).c_str(),
           program_.dims_text(value.shape).c_str());
    late.shape[d] = shape[d];
  }
  int64_t count = row_major(rank, late.shape, late.strides);
  int64_t bytes = mul(count, kDtypes[value.dtype].size);
  if (!data) {
    if (value.kind == Value::kOutput) {
      Target& t = outputs_[value.index];
      claim(t, value, shape, bytes);
      data = t.data;
    } else {
      data = heap_->take(bytes);
    }
  }
  late.place = {late.shape, late.strides, 0, count, 0, bytes, true};
  late.resolved = true;
  roots_[size_t(v)] = data;
}

void Frame::bind_late(int symbol, int64_t value) {
  const Symbol& s = program_.symbols[size_t(symbol)];
  if (known_symbols_[size_t(symbol)]) {
    if (late_symbols_[size_t(symbol)] != value)
      fail("the size '%s' came out as %lld and as %lld", s.name.c_str(),
           static_cast<long long>(late_symbols_[size_t(symbol)]), static_cast<long long>(value));
    return;
  }
  if (value < s.lo || value > s.hi)
    fail("the data-dependent size '%s' came out as %lld, outside %lld to %lld", s.name.c_str(),
         static_cast<long long>(value), static_cast<long long>(s.lo), static_cast<long long>(s.hi));
  late_symbols_[size_t(symbol)] = value;
  known_symbols_[size_t(symbol)] = 1;
  program_.dims.evaluate_late(late_symbols_.data(), known_symbols_.data(), env_.data(), known_env_.data());
  check(true);
}

// Outputs that no instruction wrote in place: copied into the caller's arrays.
void Frame::finish_outputs(Target* outputs) {
  for (size_t i = 0; i < program_.outputs.size(); ++i) {
    int v = program_.outputs[i];
    const Value& value = program_.values[size_t(v)];
    if (value.kind == Value::kOutput && value.index == int(i)) {
      if (value.late && !value.dyn && !roots_[size_t(v)]) define(v);  // written by nothing: a result of size 0
      continue;
    }
    View from = view(v);
    int64_t strides[EFFC_MAX_RANK];
    int64_t count = row_major(from.rank, from.shape, strides);
    int item = kDtypes[from.dtype].size;
    Target& t = outputs[i];
    claim(t, value, from.shape, mul(count, item));
    if (count > 0) copy_strided(from.rank, from.shape, item, t.data, strides, from.data, from.strides);
  }
}

// After the last instruction: new states into the session, new contents into the caller's mutated inputs.
void Frame::commit(const View* inputs) {
  const Program& p = program_;
  if (p.commits.empty()) return;
  struct Write {
    View from;
    char* to;
    const int64_t* strides;
  };
  int64_t strides[EFFC_MAX_RANK];
  auto target = [&](const Commit& c, View& from) -> Write {
    int item = kDtypes[from.dtype].size;
    if (c.to_state) {
      const StateInfo& info = run_.session->linker.states[size_t(c.target)];
      if (info.dtype != from.dtype || int(info.shape.size()) != from.rank ||
          !std::equal(info.shape.begin(), info.shape.end(), from.shape))
        fail("the model changes the shape of its state '%s' from %s to %s, which is not supported", info.name.c_str(),
             shape_text(int(info.shape.size()), info.shape.data()).c_str(), shape_text(from.rank, from.shape).c_str());
      row_major(from.rank, from.shape, strides);
      return {from, run_.session->state(c.target), strides};
    }
    const View& in = inputs[c.target];
    if (in.dtype != from.dtype || in.rank != from.rank || !std::equal(in.shape, in.shape + in.rank, from.shape))
      fail("the model changes the shape of input %d in place, which is not supported", c.target);
    (void)item;
    return {from, in.data, in.strides};
  };
  auto in_place = [](const Write& w) {
    if (w.from.data != w.to) return false;
    for (int d = 0; d < w.from.rank; ++d)
      if (w.from.shape[d] != 1 && w.from.strides[d] != w.strides[d]) return false;
    return true;
  };
  // Sources that another write-back could overwrite are copied aside before the first write.
  int64_t total = 0;
  for (const Commit& c : p.commits) {
    if (!c.staged) continue;
    View from = view(c.value);
    if (!in_place(target(c, from))) total = add(total, align64(mul(place(c.value).count, kDtypes[from.dtype].size)));
  }
  char* staging = total > 0 ? staging_.reserve(total) : nullptr;
  for (int pass = 0; pass < 2; ++pass) {
    char* aside = staging;
    for (const Commit& c : p.commits) {
      View from = view(c.value);
      Write w = target(c, from);
      if (place(c.value).count == 0 || in_place(w)) continue;
      int item = kDtypes[from.dtype].size;
      if (c.staged) {
        int64_t packed[EFFC_MAX_RANK];
        int64_t bytes = row_major(from.rank, from.shape, packed) * item;
        if (pass == 0) copy_strided(from.rank, from.shape, item, aside, packed, from.data, from.strides);
        if (pass == 1) copy_strided(from.rank, from.shape, item, w.to, w.strides, aside, packed);
        aside += align64(bytes);
      } else if (pass == 1) {
        copy_strided(from.rank, from.shape, item, w.to, w.strides, from.data, from.strides);
      }
    }
  }
}

}  // namespace effc_rt
