// A lowered entry point, parsed and checked once at load; immutable afterwards except for its cache of plans.
#pragma once
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dims.hpp"
#include "effc_kernel.h"
#include "json.hpp"

namespace effc_rt {

struct Segment {  // weights, mapped from the file
  const uint8_t* data = nullptr;  // NULL: streamed
  int64_t nbytes = 0;
};

class Streamer;

struct StateInfo {
  std::string name;
  int dtype = 0;
  std::vector<int64_t> shape;
  int64_t nbytes = 0;
  const uint8_t* init = nullptr;  // NULL: zeros
};

// What a program refers to outside itself.
struct Linker {
  Linker() = default;
  Linker(const Linker&) = delete;
  Linker& operator=(const Linker&) = delete;
  ~Linker();
  std::vector<Segment> segments;
  std::vector<StateInfo> states;
  Streamer* streamer = nullptr;                 // NULL: all weights are mapped
  std::vector<void*> code;                      // dlopen handles
  void* symbol(const std::string& name) const;  // throws Error
  int state(const std::string& name) const;     // throws Error
};

struct Symbol {
  enum From : uint8_t { kLate, kInputDim, kInputValue, kOuter };
  std::string name;
  From from = kLate;
  int64_t lo = 0, hi = INT64_MAX;
  int input = 0, dim = 0;
  int64_t mul = 1, add = 0;  // input's dim == mul * symbol + add
  int outer = -1;            // index in the parent program
};

struct Value {
  enum Kind : uint8_t { kInput, kConst, kState, kTemp, kOutput, kView };
  Kind kind = kTemp;
  bool dyn = false;
  bool late = false;  // shape, strides or place known only once an instruction has run
  bool has_strides = false;
  int dtype = 0, rank = 0;
  int index = -1;  // input, output or state number
  int base = -1;   // the view's base, or the value that `alias` names
  int root = -1;   // the value that owns the storage
  std::vector<Dim> shape, strides;
  Dim offset = kNoDim;  // of a view, in elements
  Dim bytes = kNoDim;
  int64_t fixed = -1;             // static arena offset
  const uint8_t* data = nullptr;  // kConst; NULL where it is streamed
  int64_t data_bytes = 0;
  int segment = -1;            // streamed kConst: where its bytes are
  int64_t segment_offset = 0;
  int first = -1, last = -1;  // of a root: the instructions that define it and use it last
};

struct Program;

struct Instr {
  enum Op : uint8_t { kCall, kIf, kWhile, kScan, kRows, kSpill, kRefill };
  Op op = kCall;
  bool late = false;
  effc_kernel_fn fn = nullptr;
  effc_epilogue_fn epilogue = nullptr;
  int n_own = 0;
  std::vector<int> in, out;  // control flow: `in` lists every operand in the order the body takes them
  std::vector<Dim> attrs;
  std::vector<double> fattrs;
  Dim scratch = kNoDim, thread_scratch = kNoDim, flops = kNoDim, bytes = kNoDim;
  std::vector<int> bind;   // symbols that the kernel binds
  std::vector<int> frees;  // late roots used here for the last time
  std::string name, kernel, loc;
  int cond = -1;  // if
  int n_carry = 0, n_xs = 0, n_consts = 0;
  Dim length = kNoDim;
  bool reverse = false;
  std::vector<std::pair<int, int64_t>> tables;  // rows: segments, and how many rows each holds
  int64_t row_bytes = 0;
  int slot = -1;   // spill, refill: where in the far memory
  int spill = -1;  // refill: the instruction that wrote there last
  std::unique_ptr<Program> sub[2];  // then/else, cond/body, body
  int profile_id = 0;
  int first_slot = 0;  // of its operands in the frame's table of arguments
  int64_t work_at = -1;  // arena offset of its workspace in the static plan

  bool is_control() const { return op == kIf || op == kWhile || op == kScan; }
};

struct Commit {
  bool to_state = false;
  int target = 0;  // state or input number
  int value = -1;
  bool staged = false;  // its source overlaps another commit's target: copied aside first
};

// A segment that is read into the window for some instructions.
struct StreamLoad {
  int segment = -1;
  int64_t at = 0;     // in the window
  int64_t after = 0;  // may be read once this many instructions are done: its place is free then
};

struct Check {
  enum Op : uint8_t { kEq, kNe, kLe, kGe };
  Op op = kEq;
  Dim lhs = kNoDim, rhs = kNoDim;
  std::string message;
};

// The sizes of one binding of symbols. Immutable; shared by all frames that run it.
struct Plan {
  std::vector<int64_t> symbols;  // the key; late symbols are 0
  std::vector<int64_t> env;      // value of each Dim (0 if late)
  struct Place {
    const int64_t *shape, *strides;
    int64_t offset;  // bytes from the root's data
    int64_t count;   // elements
    int64_t lo, hi;  // bytes touched, relative to the root's data: [lo, hi)
    bool row_major;
  };
  std::vector<Place> values;
  std::vector<int64_t> root_offset;  // arena offset of temp roots
  std::vector<int64_t> pool;         // shapes and strides
  std::vector<int64_t> attrs;        // all instructions' attributes
  struct Work {
    int64_t attr = 0;  // index into attrs
    int64_t scratch = 0, scratch_at = 0, thread_scratch = 0, thread_scratch_at = 0;
    // Control flow: the arena of the nested programs, which take turns, and the second copies of carries behind it.
    // -1: their sizes are not known in time, they have memory of their own.
    int64_t nested = -1, nested_at = 0, carries = 0;
    int64_t far_at = 0, far_bytes = 0;  // spill, refill: the copy in the far memory
    int ahead = 0, ahead_count = 0;     // refills in Plan::ahead whose reading is to begin behind this
  };
  std::vector<Work> work;
  std::vector<int> ahead;  // refills, in the order in which their reading begins
  int64_t arena_bytes = 0, lower_bound = 0, far_bytes = 0;
  struct Placed {
    int id;  // a value, or -1 - instruction: its workspace
    int first, last;
    int64_t bytes, at;
  };
  std::vector<Placed> placed;  // what lies in the arena
};

struct Program {
  Program* parent = nullptr;
  std::vector<Symbol> symbols;
  std::vector<std::string> symbol_names;
  DimTable dims;
  std::vector<Value> values;
  std::vector<int> order;  // of values: bases before their views
  std::vector<Instr> code;
  std::vector<int> inputs, outputs;  // value ids; an unused input is -1
  std::vector<std::string> input_names;
  std::vector<Commit> commits;
  std::vector<Check> checks;
  bool has_late = false, uses_state = false, fixed_offsets = false;
  bool apart = false;       // no two values share bytes
  int planned_threads = 0;  // the static offsets count on so many; 0: on any number
  int64_t limit = 0;        // of the arena, which its offsets keep for fewer threads too; 0: none
  std::vector<std::vector<int>> sequences;  // in which to place blocks: values, and -1 - instruction
  int num_slots = 0;
  std::vector<std::pair<int, int>> external_slots;  // (slot, value): operands in caller or session memory
  int thread_count = 1;
  std::vector<StreamLoad> loads;            // in the order of the instructions that need them first
  std::vector<std::vector<int>> step_loads;  // per instruction: what it reads from the window
  std::vector<size_t> needs;                 // per instruction: how many loads must be there

  // Parses and checks; throws Error. `counter` numbers instructions for profiling, nested ones included.
  static std::unique_ptr<Program> parse(const Json& j, const Linker& linker, Program* parent, int threads,
                                        int& counter);

  // The plan for these symbol values, from the cache or made now.
  std::shared_ptr<const Plan> plan(const std::vector<int64_t>& symbol_values);
  std::string dims_text(const std::vector<Dim>& shape) const;

  // Throws Error for the first relation of sizes that does not hold: those that inputs decide, or, with the dims that
  // are `known` by now, those that data decide.
  void check(const int64_t* env, const uint8_t* known) const;

 private:
  struct Reader;
  std::shared_ptr<const Plan> make_plan(const std::vector<int64_t>& symbol_values) const;
  void plan_nested(const Instr& c, const Plan& plan, Plan::Work& work) const;
  void plan_far(Plan& plan) const;
  void plan_ahead(Plan& plan) const;
  std::vector<std::pair<int, int>> lifetimes(const Plan& plan, bool stated) const;
  void analyse();
  std::list<std::shared_ptr<const Plan>> plans_;  // most recent first; guarded by short_lock()
};

// Lays out blocks with lifetimes [first, last] so that those alive together do not overlap. Blocks with at >= 0 are
// fixed. `sequences`: orders of the blocks to try first, each block in its lowest gap. Returns the total size; throws
// Error if fixed blocks collide.
struct Block {
  int64_t bytes;
  int first, last;
  int64_t at;
};
int64_t plan_arena(std::vector<Block>& blocks, int steps, const std::vector<std::vector<int>>& sequences,
                   int64_t* lower_bound);

}  // namespace effc_rt
