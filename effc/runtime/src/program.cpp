#include "program.hpp"

#include <dlfcn.h>
#include <math.h>

#include <algorithm>
#include <limits>

#include "stream.hpp"

namespace effc_rt {

Linker::~Linker() {
  for (void* handle : code)
    dlclose(handle);
}

void* Linker::symbol(const std::string& name) const {
  for (void* handle : code)
    if (void* p = dlsym(handle, name.c_str())) return p;
  fail("the artifact's code lacks the kernel '%s'", name.substr(0, 200).c_str());
}

int Linker::state(const std::string& name) const {
  for (size_t i = 0; i < states.size(); ++i)
    if (states[i].name == name) return int(i);
  fail("the program refers to an unknown state '%s'", name.substr(0, 200).c_str());
}

std::string Program::dims_text(const std::vector<Dim>& shape) const {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + dims.text(shape[i], symbol_names);
  return text + (shape.size() == 1 ? ",)" : ")");
}

// Turns one JSON program into a Program. Every index is checked here, so that the executor need not.
struct Program::Reader {
  Program& p;
  const Linker& linker;
  int& counter;

  [[noreturn]] static void bad(const char* what) { fail("the manifest's program is malformed: %s", what); }

  static int number(const Json& j, int64_t lo, int64_t hi, const char* what) {
    if (!j.is_int() || j.i < lo || j.i > hi) fail("the manifest's program is malformed: %s out of range", what);
    return int(j.i);
  }
  int value_id(const Json& j, const char* what, int lo = 0) {
    return number(j, lo, int64_t(p.values.size()) - 1, what);
  }
  std::vector<int> value_ids(const Json& j, const char* key, int lo = 0) {
    std::vector<int> ids;
    for (const Json& item : j.array(key))
      ids.push_back(value_id(item, key, lo));
    return ids;
  }

  // A nested program sees the symbols of the programs around it; the ones it uses are imported.
  static int find_symbol(Program& program, const std::string& name) {
    for (size_t i = 0; i < program.symbols.size(); ++i)
      if (program.symbols[i].name == name) return int(i);
    int outer = program.parent ? find_symbol(*program.parent, name) : -1;
    if (outer < 0) return -1;
    Symbol s;
    s.name = name;
    s.from = Symbol::kOuter;
    s.outer = outer;
    program.symbols.push_back(s);
    program.symbol_names.push_back(name);
    return int(program.symbols.size()) - 1;
  }
  int symbol(const std::string& name) {
    int i = find_symbol(p, name);
    if (i < 0) fail("the manifest's program refers to an unknown symbol '%s'", name.substr(0, 80).c_str());
    return i;
  }
  Dim dim(const Json& j) {
    return p.dims.parse(j, [this](const std::string& name) {
      int i = symbol(name);
      return std::pair<int, bool>(i, p.symbols[size_t(i)].from == Symbol::kLate);
    });
  }
  std::vector<Dim> dims(const Json& j, const char* key) {
    std::vector<Dim> out;
    for (const Json& item : j.array(key))
      out.push_back(dim(item));
    return out;
  }
  Dim dim_or(const Json& j, const char* key, int64_t otherwise) {
    const Json* d = j.find(key);
    if (d && d->type == Json::kFloat) return p.dims.constant(d->f >= 0 && d->f < 9e18 ? int64_t(d->f) : 0);  // flops
    return d && !d->is_null() ? dim(*d) : p.dims.constant(otherwise);
  }

  void read_symbols(const Json& j, size_t n_inputs) {
    const Json* list = j.find("symbols");
    if (!list) return;
    if (!list->is_array()) bad("symbols");
    for (const Json& item : list->items) {
      Symbol s;
      s.name = item.str("name");
      for (const Symbol& other : p.symbols)
        if (other.name == s.name) bad("a symbol declared twice");
      if (p.parent && !item.flag("own")) {  // a nested program may list the outer symbols that it uses
        const Json* from = item.find("from");
        if ((!from || from->is_null()) && find_symbol(p, s.name) >= 0) continue;
      }
      if (const Json* lo = item.find("lo"); lo && lo->is_int()) s.lo = lo->i;
      if (const Json* hi = item.find("hi"); hi && hi->is_int()) s.hi = hi->i;
      const Json* from = item.find("from");
      if (from && !from->is_null()) {
        s.input = number(from->at("input"), 0, int64_t(n_inputs) - 1, "a symbol's input");
        if (from->flag("value")) {
          s.from = Symbol::kInputValue;
        } else {
          s.from = Symbol::kInputDim;
          s.dim = number(from->at("dim"), 0, EFFC_MAX_RANK - 1, "a symbol's dim");
          if (from->find("mul")) s.mul = from->integer("mul");
          if (from->find("add")) s.add = from->integer("add");
          if (s.mul == 0) bad("a symbol's factor is 0");
        }
      }
      p.symbol_names.push_back(s.name);
      p.symbols.push_back(std::move(s));
    }
  }

  void read_value(const Json& j, int id, int64_t n_values) {
    Value v;
    v.dtype = dtype_from_name(j.str("d"));
    v.shape = dims(j, "shape");
    if (v.shape.size() > EFFC_MAX_RANK) bad("a value's rank is above the maximum");
    v.rank = int(v.shape.size());
    if (j.find("strides")) {
      v.has_strides = true;
      v.strides = dims(j, "strides");
      if (v.strides.size() != v.shape.size()) bad("a value's strides do not match its rank");
    }
    v.root = id;
    const Json::Text& kind = j.str("k");
    int64_t limit = 1 << 20;
    if (kind == "input" || kind == "output") {
      v.kind = kind == "input" ? Value::kInput : Value::kOutput;
      v.index = number(j.at("i"), 0, limit, "an input or output number");
      v.dyn = kind == "output" && j.flag("dyn");
      if (v.has_strides) bad("an input or output with strides");
    } else if (kind == "const") {
      v.kind = Value::kConst;
      const Segment& seg =
          linker.segments[size_t(number(j.at("seg"), 0, int64_t(linker.segments.size()) - 1, "a segment"))];
      int64_t offset = j.integer("offset");
      if (offset < 0 || offset > seg.nbytes) bad("a constant lies outside its segment");
      v.data_bytes = seg.nbytes - offset;
      if (seg.data || !seg.nbytes) {
        v.data = seg.data + offset;
      } else {
        v.segment = int(j.integer("seg"));
        v.segment_offset = offset;
        if (p.parent) bad("a nested program with streamed weights");
      }
    } else if (kind == "state") {
      v.kind = Value::kState;
      v.index = linker.state(j.str("name"));
      v.data_bytes = linker.states[size_t(v.index)].nbytes;
      p.uses_state = true;
    } else if (kind == "temp") {
      v.kind = Value::kTemp;
      v.dyn = j.flag("dyn");
      if (j.find("bytes")) v.bytes = dim(j.at("bytes"));
      if (j.find("offset")) {
        v.fixed = j.integer("offset");
        if (v.fixed < 0 || v.fixed % 64) bad("an arena offset that is negative or not a multiple of 64");
        p.fixed_offsets = true;
      }
      if (j.find("alias")) v.base = number(j.at("alias"), 0, n_values - 1, "an alias");
    } else if (kind == "view") {
      v.kind = Value::kView;
      v.base = number(j.at("base"), 0, n_values - 1, "a view's base");
      v.offset = dim_or(j, "offset", 0);
      if (!v.has_strides) bad("a view without strides");
    } else {
      bad("unknown kind of value");
    }
    p.values.push_back(std::move(v));
  }

  // Orders values so that a view or alias comes after its base, and settles what they inherit from it.
  void link_values() {
    std::vector<char> mark(p.values.size(), 0);  // 1: on the path, 2: done
    std::vector<int> path;
    for (size_t start = 0; start < p.values.size(); ++start) {
      for (int v = int(start); v >= 0 && mark[size_t(v)] != 2; v = p.values[size_t(v)].base) {
        if (mark[size_t(v)] == 1) bad("views that refer to each other");
        mark[size_t(v)] = 1;
        path.push_back(v);
      }
      for (; !path.empty(); path.pop_back()) {
        link(path.back());
        mark[size_t(path.back())] = 2;
        p.order.push_back(path.back());
      }
    }
  }

  void link(int id) {
    Value& v = p.values[size_t(id)];
    if (v.base >= 0) {
      const Value& base = p.values[size_t(v.base)];
      v.root = base.root;
      const Value& root = p.values[size_t(v.root)];
      if (v.kind == Value::kTemp && root.kind == Value::kConst) bad("a value aliases a constant");
      v.late = root.late || base.late;
    }
    v.late = v.late || v.dyn;
    auto mark = [&](Dim d) { v.late = v.late || (d != kNoDim && p.dims.late(d)); };
    for (Dim d : v.shape)
      mark(d);
    for (Dim d : v.strides)
      mark(d);
    mark(v.offset);
    mark(v.bytes);
    if (v.dyn && v.root != id) bad("a dyn value that aliases another");
    if (v.kind == Value::kInput && v.late) bad("an input's shape depends on a data-dependent symbol");
  }

  // Float attributes; infinities and NaN come as words.
  static double real(const Json& j) {
    if (j.type == Json::kInt || j.type == Json::kFloat) return j.f;
    if (j.is_string()) {
      if (j.s == "inf") return std::numeric_limits<double>::infinity();
      if (j.s == "-inf") return -std::numeric_limits<double>::infinity();
      if (j.s == "nan") return std::numeric_limits<double>::quiet_NaN();
    }
    bad("a float attribute");
  }

  void read_call(const Json& j, Instr& c) {
    c.in = value_ids(j, "in", -1);
    c.out = value_ids(j, "out");
    c.kernel = j.str("kernel");
    // The loader's promise that a kernel has this signature rests on the artifact's checksum.
    c.fn = reinterpret_cast<effc_kernel_fn>(linker.symbol(c.kernel));
    c.n_own = j.find("n_own") ? number(j.at("n_own"), 0, int64_t(c.in.size()), "n_own") : int(c.in.size());
    if (const Json* e = j.find("epilogue"); e && !e->is_null())
      c.epilogue = reinterpret_cast<effc_epilogue_fn>(linker.symbol(j.str("epilogue")));
    if (j.find("attrs")) c.attrs = dims(j, "attrs");
    if (const Json* f = j.find("fattrs")) {
      if (!f->is_array()) bad("fattrs");
      for (const Json& item : f->items)
        c.fattrs.push_back(real(item));
    }
    c.scratch = dim_or(j, "scratch", 0);
    c.thread_scratch = dim_or(j, "thread_scratch", 0);
    c.flops = dim_or(j, "flops", 0);
    c.bytes = dim_or(j, "bytes", 0);
    if (const Json* b = j.find("bind")) {
      if (!b->is_array()) bad("bind");
      for (const Json& item : b->items) {
        if (!item.is_string()) bad("bind");
        int s = symbol(item.s);
        if (p.symbols[size_t(s)].from != Symbol::kLate) bad("an instruction binds a symbol that comes from an input");
        c.bind.push_back(s);
      }
    }
  }

  void nested(const Json& j, const char* key, Instr& c, int slot, size_t n_in, size_t n_out) {
    c.sub[slot] = Program::parse(j.object(key), linker, &p, p.thread_count, counter);
    const Program& sub = *c.sub[slot];
    if (sub.inputs.size() != n_in || sub.outputs.size() != n_out)
      bad("a nested program's inputs or outputs do not match");
    if (!sub.commits.empty()) bad("a nested program with commits");
    // Results go straight into the outer values, slices of them for the ys of a scan; inputs are checked when bound.
    for (size_t k = 0; k < n_out && !(c.op == Instr::kWhile && slot == 0); ++k) {
      const Value &inner = sub.values[size_t(sub.outputs[k])], &outer = p.values[size_t(c.out[k])];
      int row = c.op == Instr::kScan && k >= size_t(c.n_carry) ? 1 : 0;
      if (inner.dtype != outer.dtype || inner.rank + row != outer.rank)
        bad("the result of a nested program does not match");
    }
    for (int k = 0; k < c.n_carry; ++k)
      if (p.values[size_t(c.in[size_t(k)])].dtype != p.values[size_t(c.out[size_t(k)])].dtype)
        bad("a carry's dtypes differ");
    p.uses_state = p.uses_state || sub.uses_state;
  }

  void append(Instr& c, const Json& j, const char* key, int& count) {
    if (!j.find(key)) return;
    std::vector<int> ids = value_ids(j, key);
    count = int(ids.size());
    c.in.insert(c.in.end(), ids.begin(), ids.end());
  }

  // out = table[index], whose rows are read from the artifact one by one.
  void read_rows(const Json& j, Instr& c) {
    c.op = Instr::kRows;
    c.in = value_ids(j, "in");
    if (p.parent || !linker.streamer || c.in.size() != 1 || c.out.size() != 1) bad("rows");
    c.row_bytes = j.integer("row_bytes");
    if (c.row_bytes <= 0) bad("rows");
    for (const Json& item : j.array("tables")) {
      if (item.items.size() != 2) bad("rows");
      int segment = number(item.items[0], 0, int64_t(linker.segments.size()) - 1, "a segment");
      int64_t rows = number(item.items[1], 1, INT32_MAX, "rows");
      linker.streamer->check_rows(segment);
      if (mul(rows, c.row_bytes) > linker.segments[size_t(segment)].nbytes) bad("rows outside their segment");
      c.tables.emplace_back(segment, rows);
    }
    if (c.tables.empty()) bad("rows");
    for (int v : {c.in[0], c.out[0]})
      if (p.values[size_t(v)].late || p.values[size_t(v)].segment >= 0) bad("rows");
    int index = p.values[size_t(c.in[0])].dtype;
    if (index != EFFC_I64 && index != EFFC_I32) bad("rows");
    c.flops = dim_or(j, "flops", 0);
    c.bytes = dim_or(j, "bytes", 0);
  }

  // Copies between the arena and the far memory. A refill takes what the last spill of its slot wrote.
  void read_copy(const Json& j, Instr& c, bool out, std::vector<int>& last_spill) {
    c.op = out ? Instr::kSpill : Instr::kRefill;
    c.in = value_ids(j, "in");
    if (p.parent) bad("a nested program that spills");
    if (c.in.size() != (out ? 1 : 0) || c.out.size() != (out ? 0 : 1)) bad("a copy to or from the far memory");
    const Value& v = p.values[size_t(out ? c.in[0] : c.out[0])];
    if (v.kind != Value::kTemp || v.late || p.values[size_t(v.root)].kind != Value::kTemp)
      bad("a copy to or from the far memory of what is not in the arena");
    c.slot = number(j.at("slot"), 0, 1 << 16, "a slot of the far memory");
    if (last_spill.size() <= size_t(c.slot)) last_spill.resize(size_t(c.slot) + 1, -1);
    int& last = last_spill[size_t(c.slot)];
    if (out) {
      last = int(p.code.size());
    } else {
      if (last < 0) bad("a refill of what was not spilled");
      c.spill = last;
    }
    c.bytes = dim_or(j, "bytes", 0);
  }

  // Which instruction reads which segments from where in the window.
  void read_stream(const Json& j) {
    const Json* stream = j.find("stream");
    p.step_loads.resize(p.code.size());
    p.needs.assign(p.code.size(), 0);
    if (!stream) return;
    if (p.parent || !linker.streamer) bad("a window without memory for it");
    int64_t n = int64_t(p.code.size());
    for (const Json& item : stream->array("loads")) {
      StreamLoad l;
      l.segment = number(item.at("seg"), 0, int64_t(linker.segments.size()) - 1, "a segment");
      l.at = item.integer("at");
      l.after = number(item.at("after"), 0, n, "after");
      linker.streamer->check_load(l);
      // In order: a place is then free as soon as the one before it is.
      if (!p.loads.empty() && l.after < p.loads.back().after) bad("loads out of order");
      for (const Json& step : item.array("steps")) {
        int i = number(step, 0, n - 1, "a load's instruction");
        // Else the place would never become free, and the run never end.
        if (l.after > i) bad("weights that come after their use");
        p.step_loads[size_t(i)].push_back(int(p.loads.size()));
        p.needs[size_t(i)] = p.loads.size() + 1;
      }
      p.loads.push_back(l);
    }
    // A load waits for its place, and those before it are waited for: both must come to an end.
    size_t have = 0;
    for (size_t i = 0; i < p.code.size(); ++i)
      for (size_t k = have; k < p.needs[i]; ++k, ++have)
        if (p.loads[k].after > int64_t(i)) bad("weights that come after their use");
  }

  std::vector<int> last_spill;  // by slot: the instruction

  void read_instruction(const Json& j) {
    Instr c;
    c.profile_id = counter++;
    const Json::Text& op = j.str("op");
    c.name = j.str_or("name", op == "call" ? j.str_or("kernel", "").c_str() : op.c_str());
    c.loc = j.str_or("loc", "");
    c.scratch = c.thread_scratch = c.flops = c.bytes = p.dims.constant(0);
    if (j.find("work_at")) {
      c.work_at = j.integer("work_at");
      if (c.work_at < 0 || c.work_at % 64) bad("an arena offset that is negative or not a multiple of 64");
    }
    if (op == "call") {
      read_call(j, c);
    } else {
      c.kernel = op;
      c.out = value_ids(j, "out");
      size_t n_out = c.out.size();
      if (op == "if") {
        c.op = Instr::kIf;
        c.cond = value_id(j.at("cond"), "cond");
        c.in = value_ids(j, "in");
        nested(j, "then", c, 0, c.in.size(), n_out);
        nested(j, "else", c, 1, c.in.size(), n_out);
        c.in.push_back(c.cond);  // the last operand of an "if" is its condition
      } else if (op == "while") {
        c.op = Instr::kWhile;
        append(c, j, "in", c.n_carry);
        append(c, j, "consts", c.n_consts);
        if (n_out != size_t(c.n_carry)) bad("a while loop's results are not its carries");
        nested(j, "cond", c, 0, c.in.size(), 1);
        nested(j, "body", c, 1, c.in.size(), n_out);
      } else if (op == "scan") {
        c.op = Instr::kScan;
        append(c, j, "carry", c.n_carry);
        append(c, j, "xs", c.n_xs);
        append(c, j, "consts", c.n_consts);
        c.length = dim(j.at("length"));
        c.reverse = j.flag("reverse");
        if (n_out < size_t(c.n_carry)) bad("a scan has fewer results than carries");
        nested(j, "body", c, 0, c.in.size(), n_out);
      } else if (op == "rows") {
        read_rows(j, c);
      } else if (op == "spill" || op == "refill") {
        read_copy(j, c, op == "spill", last_spill);
      } else {
        fail("the manifest's program has an unknown instruction '%s'", std::string(op.substr(0, 40)).c_str());
      }
    }
    for (int v : c.out) {
      Value::Kind kind = p.values[size_t(p.values[size_t(v)].root)].kind;
      if (kind == Value::kConst) bad("an instruction writes a constant");
    }
    p.code.push_back(std::move(c));
  }

  void read_arena(const Json& j) {
    p.apart = j.flag("apart");
    if (const Json* limit = j.find("limit")) {
      if (!limit->is_int() || limit->i <= 0) bad("the limit of its arena");
      p.limit = limit->i;
    }
    if (const Json* t = j.find("threads"); t && t->is_int()) p.planned_threads = int(std::max<int64_t>(t->i, 0));
    const Json* list = j.find("sequences");
    if (!list) return;
    if (!list->is_array() || list->items.size() > 16) bad("the sequences of its arena");
    for (const Json& item : list->items) {
      if (!item.is_array()) bad("the sequences of its arena");
      std::vector<int> ids;
      for (const Json& id : item.items)
        ids.push_back(number(id, -int64_t(p.code.size()), int64_t(p.values.size()) - 1, "a block of its arena"));
      p.sequences.push_back(std::move(ids));
    }
  }

  void read(const Json& j) {
    const Json::List<Json>& inputs = j.array("inputs");
    read_symbols(j, inputs.size());
    const Json::List<Json>& values = j.array("values");
    if (values.size() > (1u << 24)) bad("too many values");
    p.values.reserve(values.size());
    for (const Json& item : values)
      read_value(item, int(p.values.size()), int64_t(values.size()));
    link_values();
    p.inputs = value_ids(j, "inputs", -1);
    p.outputs = value_ids(j, "outputs");
    // Each input and output is one value: its checks against the caller's arrays hold for all that refers to them.
    for (size_t id = 0; id < p.values.size(); ++id) {
      const Value& v = p.values[id];
      if (v.kind == Value::kInput && (size_t(v.index) >= p.inputs.size() || p.inputs[size_t(v.index)] != int(id)))
        bad("an input value that is not in the list of inputs");
      if (v.kind == Value::kOutput && (size_t(v.index) >= p.outputs.size() || p.outputs[size_t(v.index)] != int(id)))
        bad("an output value that is not in the list of outputs");
      if (v.kind == Value::kState && size_t(v.rank) != linker.states[size_t(v.index)].shape.size())
        bad("a state value's rank");
    }
    for (int id : p.inputs)
      if (id >= 0 && p.values[size_t(id)].kind != Value::kInput) bad("an input is not an input value");
    for (const Symbol& s : p.symbols) {
      if (s.from != Symbol::kInputDim && s.from != Symbol::kInputValue) continue;
      int id = p.inputs[size_t(s.input)];
      if (id < 0) bad("a symbol comes from an absent input");
      if (s.from == Symbol::kInputDim && s.dim >= p.values[size_t(id)].rank) bad("a symbol's dim");
    }
    for (const Json& item : j.array("code"))
      read_instruction(item);
    read_stream(j);
    if (const Json* list = j.find("commits")) {
      if (!list->is_array()) bad("commits");
      for (const Json& item : list->items) {
        Commit c;
        c.to_state = item.find("state") != nullptr;
        c.target = c.to_state ? linker.state(item.str("state"))
                              : number(item.at("input"), 0, int64_t(p.inputs.size()) - 1, "a commit's input");
        c.value = value_id(item.at("value"), "a commit's value");
        p.uses_state = p.uses_state || c.to_state;
        p.commits.push_back(c);
      }
    }
    // The caller's arrays are read only, but for those that the model writes back.
    auto writes = [&](int id) {
      const Value& root = p.values[size_t(p.values[size_t(id)].root)];
      if (root.kind != Value::kInput) return;
      for (const Commit& c : p.commits)
        if (!c.to_state && c.target == root.index) return;
      bad("an instruction writes an input");
    };
    for (const Instr& c : p.code)
      for (int id : c.out) writes(id);
    if (const Json* arena = j.find("arena"); arena && arena->is_object()) read_arena(*arena);
    if (const Json* list = j.find("checks")) {
      if (!list->is_array()) bad("checks");
      for (const Json& item : list->items) {
        Check c;
        const Json::Text& op = item.str("op");
        c.op = op == "==" ? Check::kEq : op == "!=" ? Check::kNe : op == "<=" ? Check::kLe : Check::kGe;
        if (c.op == Check::kGe && op != ">=") bad("a check's operator");
        c.lhs = dim(item.at("lhs"));
        c.rhs = dim(item.at("rhs"));
        c.message = item.str_or("message", "");
        p.checks.push_back(c);
      }
    }
  }
};

std::unique_ptr<Program> Program::parse(const Json& j, const Linker& linker, Program* parent, int threads,
                                        int& counter) {
  int depth = 0;
  for (Program* q = parent; q; q = q->parent)
    ++depth;
  if (depth > 32) fail("the manifest's program is malformed: control flow nested too deeply");
  auto program = std::make_unique<Program>();
  program->parent = parent;
  program->thread_count = threads;
  Reader{*program, linker, counter, {}}.read(j);
  program->analyse();
  return program;
}

// Lifetimes of storage, which operands lie in memory of the caller, which commits need a copy aside.
void Program::analyse() {
  int n = int(code.size());
  auto use = [&](int v, int at) {
    if (v < 0) return;
    Value& root = values[size_t(values[size_t(v)].root)];
    if (root.first < 0) root.first = at;
    root.last = std::max(root.last, at);
  };
  for (int i = 0; i < n; ++i) {
    Instr& c = code[size_t(i)];
    c.first_slot = num_slots;
    num_slots += int(c.in.size() + c.out.size());
    auto operand = [&](int v, int slot) {
      use(v, i);
      if (v < 0) return;
      const Value& value = values[size_t(v)];
      c.late = c.late || value.late;
      Value::Kind kind = values[size_t(value.root)].kind;
      if (!value.late && (kind == Value::kInput || kind == Value::kOutput || kind == Value::kState))
        external_slots.emplace_back(slot, v);
    };
    for (size_t k = 0; k < c.in.size(); ++k)
      operand(c.in[k], c.first_slot + int(k));
    for (size_t k = 0; k < c.out.size(); ++k)
      operand(c.out[k], c.first_slot + int(c.in.size() + k));
    for (Dim d : c.attrs)
      c.late = c.late || dims.late(d);
    for (Dim d : {c.scratch, c.thread_scratch, c.length})
      c.late = c.late || (d != kNoDim && dims.late(d));
    for (const auto& sub : c.sub)
      if (sub)
        for (const Symbol& s : sub->symbols)
          if (s.from == Symbol::kOuter && symbols[size_t(s.outer)].from == Symbol::kLate) c.late = true;
    c.late = c.late || !c.bind.empty();
    has_late = has_late || c.late;
  }
  for (int v : outputs) {
    use(v, n);
    has_late = has_late || values[size_t(v)].late;
  }
  for (Commit& c : commits) {
    use(c.value, n);
    has_late = has_late || values[size_t(c.value)].late;
    const Value& root = values[size_t(values[size_t(c.value)].root)];
    for (const Commit& other : commits) {
      if (other.to_state ? root.kind == Value::kState && root.index == other.target
                         : root.kind == Value::kInput && root.index == other.target)
        c.staged = true;
    }
  }
  for (size_t v = 0; v < values.size(); ++v) {
    Value& root = values[v];
    if (root.root == int(v) && root.kind == Value::kTemp && root.late && root.last >= 0 && root.last < n)
      code[size_t(root.last)].frees.push_back(int(v));
  }
}

}  // namespace effc_rt
