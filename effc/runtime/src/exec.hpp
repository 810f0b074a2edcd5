// Running programs: sessions, frames (the mutable side of a program) and the loaded model.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "effc.h"
#include "far.hpp"
#include "program.hpp"
#include "stream.hpp"
#include "zip.hpp"

namespace effc_rt {

// Guards short sections only (a list's push or pop). One for the process, so that fork() can hold it.
std::mutex& short_lock();

// Fills shape, strides and extents of one value whose dims are known in env. base_place: the place of v.base, if any.
void fill_place(const Value& v, const int64_t* env, const Plan::Place* base_place, int64_t* shape, int64_t* strides,
                Plan::Place& place);

struct ProfileSlot {
  std::atomic<uint64_t> calls{0}, ns{0};
  std::atomic<int64_t> flops{0}, bytes{0};
};

struct Session {
  explicit Session(const Linker& linker) : linker(linker) {}
  ~Session() { release(); }
  Session(const Session&) = delete;
  // With `run_lock` held: the buffer of a state, made at first use.
  char* state(int index);
  void release();

  const Linker& linker;
  std::mutex run_lock;  // held while a program with state runs
  std::vector<char*> states;
  std::atomic<uint64_t> seed{67280421310721u};  // as torch.Generator's default: fixed, so that runs can be repeated
  std::atomic<uint64_t> counter{0};
};

// What one run needs besides sizes and memory. Kernels get it as their opaque `run`.
struct RunState {
  int threads = 1;
  Session* session = nullptr;
  ProfileSlot* profile = nullptr;  // NULL: off
  Streamer* streamer = nullptr;    // NULL: all weights are mapped
  FarCounts* far = nullptr;
  std::atomic<bool> failed{false};  // a kernel called effc_api::fail
  std::mutex error_lock;
  std::string error;  // from effc_api::fail; the first one counts
};

struct View {  // an operand, wherever it lies
  char* data = nullptr;
  int dtype = 0, rank = 0;
  const int64_t *shape = nullptr, *strides = nullptr;
};

// Where an output goes. data NULL: the frame allocates with `alloc` and sets data, rank and shape. Otherwise rank and
// shape say what fits there, row-major.
struct Target {
  char* data = nullptr;
  bool allocated = false;
  int rank = 0;
  int64_t shape[EFFC_MAX_RANK];
  char* (*alloc)(void* context, int64_t bytes) = nullptr;
  void* context = nullptr;
};

// Memory for values whose size is known only while running: blocks are reused within a run and from run to run.
class Heap {
 public:
  ~Heap();
  char* take(int64_t bytes);
  void give(char* p);  // p may be foreign or NULL: ignored
  void reset();        // gives all
  bool poison = false;  // what is taken is filled with NaN
 private:
  struct Entry {
    char* p;
    int64_t size;
    bool used;
  };
  std::vector<Entry> entries_;
  int64_t used_ = 0, peak_ = 0, total_ = 0;
};

// What a run needs besides what outlives it (results, states): the arena, and a heap for what only data size. Runs take
// turns in it, whichever entry points they are of; runs that overlap in time have one each.
struct Workspace {
  Buffer arena;
  Heap heap;
  std::atomic<int64_t> bytes{0};  // of the arena, for those who ask while a run holds it
  bool used = false;              // guarded by short_lock()
};

class Frame;
struct CallRecord {  // `call` first: kernels hand back a pointer to it
  effc_call call;
  Frame* frame;
  const Instr* instr;
};

// The mutable side of a program: tensors and argument tables. One thread at a time; kept and reused between runs.
class Frame {
 public:
  Frame(Program& program, RunState& run);

  // Binds symbols from the inputs (and the parent's), checks sizes, picks the plan. Throws Error.
  void bind(const View* inputs, const Frame* parent);
  // The memory of the run to come; a nested program has its parent's, or its own. Throws Error.
  void use(Workspace& workspace);
  // Executes the bound program.
  void run(const View* inputs, Target* outputs);

  const Plan& plan() const { return *plan_; }
  Program& program() const { return program_; }

 private:
  friend struct Services;
  struct LateValue {
    bool resolved = false;
    int64_t shape[EFFC_MAX_RANK], strides[EFFC_MAX_RANK];
    Plan::Place place;
  };

  void adopt(std::shared_ptr<const Plan> plan);
  void attach(char* arena);
  void check(bool late);
  void step(size_t i);
  void count(size_t i, uint64_t ns);  // for the profile
  void call(size_t i);
  void branch(size_t i);
  void loop(size_t i);
  void scan(size_t i);
  void rows(size_t i);
  void copy_far(size_t i);
  void read_ahead(const Plan::Work& work);
  const char* streamed(size_t step, const Value& root) const;  // throws Error
  void finish_outputs(Target* outputs);
  // Makes room for an output of this shape, or checks that it fits the room there is.
  void claim(Target& t, const Value& value, const int64_t* shape, int64_t bytes);
  void commit(const View* inputs);
  Frame& child(size_t i, int slot);

  // Values, late ones included.
  void resolve(int v);  // a late value's sizes and address
  void define(int v);   // storage for an instruction's result, if it has none yet
  void set_dynamic(int v, int rank, const int64_t* shape, char* data);
  void bind_late(int symbol, int64_t value);
  const Plan::Place& place(int v) const;
  View view(int v);
  effc_tensor tensor(int v);
  Target target(int v, const char* what);
  void settle(int v, const Target& t);  // after a nested program filled `t`
  static char* heap_alloc(void* frame, int64_t bytes);

  // What running control flow needs: kept, so that a warm run allocates nothing.
  struct Control {
    Buffer spare;  // second copies of carries, where the arena has no place for them
    std::vector<View> in;
    std::vector<Target> out;
    // Carries of a loop: read from `now` while `next` is written; `home` is the instruction's own result.
    std::vector<char*> now, next, home, x0, y0;
    std::vector<int64_t> bytes, strides, x_step, y_step;
    void finish() const;
  };
  Control& control(size_t i) { return controls_[size_t(control_[i])]; }
  void start_carries(size_t i, size_t n);
  // Memory for the arena, of the frame around this one; NULL: its own.
  void lend(char* arena, int64_t bytes);
  void lend_to(size_t i, Frame& child);

  Program& program_;
  RunState& run_;
  std::shared_ptr<const Plan> plan_;
  std::vector<int64_t> symbols_;
  Buffer arena_;                            // of a nested program whose sizes are not known in time
  Far far_;
  char *lent_ = nullptr, *base_ = nullptr;  // base_: the arena that all addresses are of; NULL: of none yet
  int64_t lent_bytes_ = 0;
  std::vector<char*> roots_;  // by value id, for roots
  std::vector<effc_tensor> slots_;
  std::vector<CallRecord> calls_;
  std::vector<Buffer> input_copies_;
  std::vector<Control> controls_;                 // one per instruction with control flow
  std::vector<std::unique_ptr<Frame>> children_;  // two per instruction with control flow
  std::vector<int> control_;                      // instruction -> index into controls_, or -1
  Buffer staging_;
  Target* outputs_ = nullptr;  // during run
  // Programs with data-dependent sizes only.
  std::vector<int> late_index_;  // value -> index into late_, or -1
  std::vector<LateValue> late_;
  std::vector<uint8_t> known_symbols_, known_env_;
  std::vector<int64_t> late_symbols_, env_;
  std::vector<int64_t> late_attrs_;
  Heap own_heap_, *heap_ = &own_heap_;
  bool poison_ = false;
};

struct IoInfo {
  std::string name;
  int dtype = 0;
  std::vector<int64_t> shape;  // -1: varies
  bool written = false;
};

struct Context;  // a frame with its run state, pooled per entry

struct Entry {
  Entry();
  ~Entry();
  std::string name;
  std::vector<IoInfo> inputs, outputs;
  std::unique_ptr<Program> program;
  std::vector<std::unique_ptr<Context>> idle;              // guarded by short_lock()
  std::vector<std::pair<const Instr*, int>> instructions;  // in profile order, with depth
  std::unique_ptr<ProfileSlot[]> profile;
};

class Model {
 public:
  Model(const char* path, int threads);
  ~Model();

  void infer(int entry, const effc_array* in, int n_in, effc_array* out, int n_out);
  void run(int entry, Session* session, const effc_array* in, int n_in, effc_array* out, int n_out);
  void arena(int entry, const effc_array* in, int n_in, int64_t* bytes, int64_t* bound);
  int arena_blocks(int entry, const effc_array* in, int n_in, effc_block* blocks, int capacity);
  void arenas(int64_t* bytes, int32_t* count) const;  // that runs have made so far
  Entry& entry(int i);
  const Streamer* streamer() const { return streamer_.get(); }
  const FarCounts& far() const { return far_; }

  int threads = 1;
  std::string manifest;
  std::vector<std::unique_ptr<Entry>> entries;
  Linker linker;
  std::unique_ptr<Session> session;
  std::atomic<bool> profiling{false};

 private:
  void load_segments(const Json& manifest, const std::vector<ZipEntry>& files);
  void load_code(const Json& manifest, const std::vector<ZipEntry>& files);
  void load_states(const Json& manifest);
  void load_entries(const Json& manifest);
  void limit_threads(const Json& manifest);
  void verify_weights();
  struct Lease;
  struct Turn;

  struct Chunk {
    const uint8_t* data;
    int64_t size;
    uint64_t xxh3;
    const std::string* path;
  };
  Mapping file_;
  std::unique_ptr<Streamer> streamer_;
  FarCounts far_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;  // guarded by short_lock()
  std::vector<std::unique_ptr<Buffer>> kept_;  // small weights of an artifact that streams the others
  std::vector<std::string> segment_paths_;
  std::vector<Chunk> chunks_;
  std::once_flag verified_;
  std::atomic<bool> weights_ok_{false};
};

}  // namespace effc_rt
