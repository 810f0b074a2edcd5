// Loading an artifact, and running its entry points from any number of threads.
#include <dlfcn.h>
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "exec.hpp"
#include "isa.hpp"
#include "pool.hpp"
#include "xxh3.hpp"

namespace effc_rt {

struct Context {
  explicit Context(Program& program) : frame(program, state) {}
  RunState state;
  Frame frame;
  std::vector<View> inputs;
  std::vector<Target> outputs;
  const Workspace* last = nullptr;  // that addresses are of; only to be compared
};

Entry::Entry() = default;
Entry::~Entry() = default;

namespace {

constexpr int64_t kVerifyAtLoad = int64_t(32) << 20;  // larger weights are verified at the first run
constexpr size_t kMaxIdle = 64;                        // contexts kept per entry, workspaces per model

const ZipEntry& find(const std::vector<ZipEntry>& files, const std::string& path) {
  for (const ZipEntry& f : files)
    if (f.path == path) return f;
  fail("the artifact lacks '%s'", path.substr(0, 200).c_str());
}

uint64_t parse_hex(const Json& j) {
  if (!j.is_string() || j.s.size() != 16) fail("the manifest holds a malformed checksum");
  uint64_t v = 0;
  for (char c : j.s) {
    int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) fail("the manifest holds a malformed checksum");
    v = v << 4 | uint64_t(digit);
  }
  return v;
}

int64_t count_of(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t d : shape)
    n = mul(n, d);
  return n;
}

// Maps code from memory: no file is written. The path is spelled differently each time ("/" or "/./" per bit of a
// counter), because the dynamic linker takes equal paths for the same object even after the number was reused.
void* load_code_object(const uint8_t* data, int64_t size, const std::string& what) {
  int fd = memfd_create("effc", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) fail("cannot create memory for the artifact's code: %s", strerror(errno));
  for (int64_t done = 0; done < size;) {
    ssize_t n = write(fd, data + done, size_t(size - done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      int error = errno;
      close(fd);
      fail("cannot write the artifact's code to memory: %s", strerror(error));
    }
    done += n;
  }
  static std::atomic<uint32_t> counter{0};
  std::string path = "/proc/self/fd";
  for (uint32_t k = counter.fetch_add(1); k; k >>= 1)
    path += k & 1 ? "/." : "/";
  path += "/" + std::to_string(fd);
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const char* why = handle ? nullptr : dlerror();
  close(fd);
  if (!handle) fail("cannot load the artifact's code '%s': %s", what.c_str(), why ? why : "unknown error");
  return handle;
}

}  // namespace

Model::Model(const char* path, int want_threads) : file_(path) {
  threads = want_threads > 0 ? std::min(want_threads, 256) : default_threads();
  std::vector<ZipEntry> files = read_zip(file_.data, file_.size);
  const ZipEntry& m = find(files, "manifest.json");
  if (crc32(file_.data + m.offset, m.size) != m.crc32)
    fail("the artifact is damaged: the manifest's checksum does not match");
  manifest.assign(reinterpret_cast<const char*>(file_.data + m.offset), size_t(m.size));
  JsonPages pages;
  Json j = Json::parse(manifest.data(), manifest.size(), pages);
  if (!j.is_object()) fail("the manifest is not an object");
  int64_t format = j.integer("format");
  if (format != EFFC_FORMAT_VERSION)
    fail(
        "this artifact has format version %lld, this effc reads version %d: compile the model again, or use the effc "
        "that "
        "wrote it",
        static_cast<long long>(format), EFFC_FORMAT_VERSION);
  if (j.integer("abi") != EFFC_ABI_VERSION)
    fail("this artifact's kernels have ABI version %lld, this effc has %d: compile the model again",
         static_cast<long long>(j.integer("abi")), EFFC_ABI_VERSION);
  std::vector<std::string> isa;
  for (const Json& item : j.array("isa")) {
    if (!item.is_string()) fail("'isa' in the manifest is malformed");
    isa.push_back(item.s);
  }
  require_isa(isa, j.str("target"));
  if (const Json* memory = j.find("memory"); memory && memory->is_object()) {
    streamer_ = std::make_unique<Streamer>(*memory, path, file_);
    linker.streamer = streamer_.get();
    threads = std::min(threads, streamer_->threads());  // the budget has room for the scratch of these
  }
  limit_threads(j);
  load_segments(j, files);
  if (streamer_) streamer_->start(*j.find("memory"));
  load_states(j);
  load_code(j, files);
  session = std::make_unique<Session>(linker);
  load_entries(j);
  if (streamer_) file_.release();  // what is read from now on is not kept by the page cache on its behalf
}

Model::~Model() {
  entries.clear();
  session.reset();
}

void Model::load_segments(const Json& manifest_json, const std::vector<ZipEntry>& files) {
  int64_t total = 0;
  const Json::List<Json>& list = manifest_json.array("segments");
  segment_paths_.reserve(list.size());
  for (const Json& item : list) {
    segment_paths_.push_back(item.str("path"));
    const ZipEntry& f = find(files, segment_paths_.back());
    int64_t nbytes = item.integer("nbytes"), chunk = item.integer("chunk");
    if (nbytes != f.size || chunk <= 0) fail("the artifact is damaged: '%s' has another size", f.path.c_str());
    if (f.offset % 64 != 0) fail("the artifact is damaged: '%s' is not aligned", f.path.c_str());
    const Json::List<Json>& sums = item.array("xxh3");
    if (uint64_t(sums.size()) != uint64_t(nbytes / chunk + (nbytes % chunk != 0)))
      fail("the artifact is damaged: '%s' has another number of checksums", f.path.c_str());
    if (streamer_ && item.flag("stream")) {
      std::vector<uint64_t> expected;
      for (const Json& sum : sums)
        expected.push_back(parse_hex(sum));
      streamer_->add(int(linker.segments.size()), f.offset, nbytes, chunk, std::move(expected), &segment_paths_.back());
      linker.segments.push_back({nullptr, nbytes});
      continue;
    }
    for (size_t k = 0; k < sums.size(); ++k) {
      int64_t at = int64_t(k) * chunk;
      chunks_.push_back(
          {file_.data + f.offset + at, std::min(chunk, nbytes - at), parse_hex(sums[k]), &segment_paths_.back()});
    }
    linker.segments.push_back({file_.data + f.offset, nbytes});
    total = add(total, nbytes);
  }
  if (total <= kVerifyAtLoad || streamer_) verify_weights();
  for (Segment& s : linker.segments) {  // the mapping is given up after loading
    if (!streamer_ || !s.data) continue;
    kept_.push_back(std::make_unique<Buffer>());
    s.data = static_cast<const uint8_t*>(memcpy(kept_.back()->reserve(s.nbytes), s.data, size_t(s.nbytes)));
  }
}

void Model::verify_weights() {
  if (weights_ok_.load(std::memory_order_acquire)) return;
  struct Job {
    const std::vector<Chunk>& chunks;
    std::atomic<int64_t> bad{-1};
  } job{chunks_};
  auto task = [](void* arg, int64_t begin, int64_t end, int32_t) {
    Job& j = *static_cast<Job*>(arg);
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& c = j.chunks[size_t(i)];
      if (xxh3_64(c.data, size_t(c.size)) != c.xxh3) j.bad.store(i);
    }
  };
  parallel_for(threads, int64_t(chunks_.size()), 1, task, &job);
  if (job.bad >= 0)
    fail("the artifact is damaged: the checksum of '%s' does not match", chunks_[size_t(job.bad)].path->c_str());
  weights_ok_.store(true, std::memory_order_release);
}

void Model::load_code(const Json& manifest_json, const std::vector<ZipEntry>& files) {
  for (const Json& item : manifest_json.array("code")) {
    const ZipEntry& f = find(files, item.str("path"));
    const uint8_t* data = file_.data + f.offset;
    if (xxh3_64(data, size_t(f.size)) != parse_hex(item.at("xxh3")))
      fail("the artifact is damaged: the checksum of '%s' does not match", f.path.c_str());
    linker.code.push_back(load_code_object(data, f.size, f.path));
  }
}

void Model::load_states(const Json& manifest_json) {
  const Json* states = manifest_json.find("states");
  if (!states || states->is_null()) return;
  if (!states->is_object()) fail("'states' in the manifest is malformed");
  for (size_t k = 0; k < states->keys.size(); ++k) {
    const Json& item = states->items[k];
    StateInfo info;
    info.name = states->keys[k];
    info.dtype = dtype_from_name(item.str("d"));
    for (const Json& d : item.array("shape")) {
      if (!d.is_int() || d.i < 0) fail("the shape of state '%s' is malformed", info.name.c_str());
      info.shape.push_back(d.i);
    }
    if (info.shape.size() > EFFC_MAX_RANK) fail("the rank of state '%s' is above the maximum", info.name.c_str());
    info.nbytes = mul(count_of(info.shape), kDtypes[info.dtype].size);
    if (item.find("seg")) {
      int64_t seg = item.integer("seg"), offset = item.integer("offset");
      if (seg < 0 || size_t(seg) >= linker.segments.size() || offset < 0 ||
          offset > linker.segments[size_t(seg)].nbytes || info.nbytes > linker.segments[size_t(seg)].nbytes - offset)
        fail("state '%s' lies outside its segment", info.name.c_str());
      info.init = linker.segments[size_t(seg)].data + offset;
    }
    linker.states.push_back(std::move(info));
  }
}

namespace {

void collect(const Program& p, int depth, std::vector<std::pair<const Instr*, int>>& out) {
  for (const Instr& c : p.code) {
    if (out.size() <= size_t(c.profile_id)) out.resize(size_t(c.profile_id) + 1, {nullptr, 0});
    out[size_t(c.profile_id)] = {&c, depth};
    for (const auto& sub : c.sub)
      if (sub) collect(*sub, depth + 1, out);
  }
}

std::vector<IoInfo> read_ios(const Json& list, const Program& p, const std::vector<int>& ids) {
  if (!list.is_array() || list.items.size() != ids.size()) fail("the manifest's signature does not match its program");
  std::vector<IoInfo> out;
  for (size_t i = 0; i < ids.size(); ++i) {
    const Json& item = list.items[i];
    IoInfo io;
    io.name = item.str_or("name", "");
    io.dtype = dtype_from_name(item.str("dtype"));
    size_t rank = item.array("shape").size();
    if (rank > EFFC_MAX_RANK) fail("the manifest's signature has a rank above the maximum");
    io.shape.assign(rank, -1);
    if (ids[i] >= 0) {
      const Value& v = p.values[size_t(ids[i])];
      if (v.dtype != io.dtype || size_t(v.rank) != rank) fail("the manifest's signature does not match its program");
      for (size_t d = 0; d < rank; ++d)
        if (p.dims.is_const(v.shape[d])) io.shape[d] = p.dims[v.shape[d]].value;
    }
    out.push_back(std::move(io));
  }
  return out;
}

}  // namespace

// Scratch is for each thread: a limited arena has room for that of the threads it was planned for.
void Model::limit_threads(const Json& manifest_json) {
  for (const Json& item : manifest_json.object("entries").items) {
    const Json* program = item.find("program");
    const Json* arena = program ? program->find("arena") : nullptr;
    const Json* planned = arena && arena->is_object() && arena->find("limit") ? arena->find("threads") : nullptr;
    if (planned && planned->is_int() && planned->i > 0) threads = int(std::min<int64_t>(threads, planned->i));
  }
}

void Model::load_entries(const Json& manifest_json) {
  const Json& list = manifest_json.object("entries");
  for (size_t k = 0; k < list.keys.size(); ++k) {
    const Json& item = list.items[k];
    auto e = std::make_unique<Entry>();
    e->name = list.keys[k];
    int counter = 0;
    e->program = Program::parse(item.object("program"), linker, nullptr, threads, counter);
    e->inputs = read_ios(item.at("inputs"), *e->program, e->program->inputs);
    e->outputs = read_ios(item.at("outputs"), *e->program, e->program->outputs);
    for (const IoInfo& io : e->inputs)
      e->program->input_names.push_back(io.name);
    for (const Commit& c : e->program->commits)
      if (!c.to_state) e->inputs[size_t(c.target)].written = true;
    collect(*e->program, 0, e->instructions);
    e->profile = std::make_unique<ProfileSlot[]>(e->instructions.size());
    entries.push_back(std::move(e));
  }
  if (entries.empty()) fail("the artifact has no entry point");
}

Entry& Model::entry(int i) {
  if (i < 0 || size_t(i) >= entries.size()) fail("there is no entry point %d", i);
  return *entries[size_t(i)];
}

// A context borrowed from the entry's idle list. Contexts are as many as runs were ever concurrent.
struct Model::Lease {
  Lease(Entry& e, int threads, Streamer* streamer, FarCounts* far) : entry(e) {
    {
      std::lock_guard<std::mutex> guard(short_lock());
      if (!e.idle.empty()) {
        context = std::move(e.idle.back());
        e.idle.pop_back();
      }
    }
    if (!context) {
      context = std::make_unique<Context>(*e.program);
      context->state.threads = threads;
      context->state.streamer = streamer;
      context->state.far = far;
      context->inputs.resize(e.inputs.size());
      context->outputs.resize(e.outputs.size());
    }
  }
  ~Lease() {
    std::lock_guard<std::mutex> guard(short_lock());
    if (entry.idle.capacity() == 0) entry.idle.reserve(kMaxIdle);
    if (entry.idle.size() < kMaxIdle) entry.idle.push_back(std::move(context));
  }
  void take_inputs(const effc_array* in, int n_in) {
    if (n_in != int(entry.inputs.size()))
      fail("the model takes %d inputs, %d were given", int(entry.inputs.size()), n_in);
    for (int i = 0; i < n_in; ++i) {
      if (in[i].rank < 0 || in[i].rank > EFFC_MAX_RANK)
        fail("input '%s' has rank %d", entry.inputs[size_t(i)].name.c_str(), in[i].rank);
      for (int d = 0; d < in[i].rank; ++d)
        if (in[i].shape[d] < 0) fail("input '%s' has a negative size", entry.inputs[size_t(i)].name.c_str());
      context->inputs[size_t(i)] = {static_cast<char*>(in[i].data), in[i].dtype, in[i].rank, in[i].shape,
                                    in[i].strides};
    }
  }
  Entry& entry;
  std::unique_ptr<Context> context;
};

// A workspace for one run: of those that are large enough the one that the context had last, so that addresses stay, or
// the smallest; else the largest, which grows. There are as many as runs were ever under way at once.
struct Model::Turn {
  Turn(Model& m, Context& c) : model(m) {
    const int64_t need = c.frame.plan().arena_bytes;
    {
      std::lock_guard<std::mutex> guard(short_lock());
      for (const auto& w : m.workspaces_) {
        if (w->used) continue;
        const bool fits = w->arena.size >= need;
        if (fits && w.get() == c.last) {
          workspace = w.get();
          break;
        }
        const bool best = workspace && workspace->arena.size >= need;  // so far, is large enough
        if (!workspace || (fits != best ? fits : (w->arena.size < workspace->arena.size) == fits)) workspace = w.get();
      }
      if (workspace) workspace->used = true;
    }
    if (!workspace) {
      auto made = std::make_unique<Workspace>();
      g_allocs.fetch_add(1, std::memory_order_relaxed);
      made->used = true;
      workspace = made.get();
      std::lock_guard<std::mutex> guard(short_lock());
      m.workspaces_.push_back(std::move(made));
    }
    c.last = workspace;
  }
  ~Turn() {
    std::unique_ptr<Workspace> dropped;  // destroyed outside the lock
    std::lock_guard<std::mutex> guard(short_lock());
    workspace->used = false;
    if (model.workspaces_.size() <= kMaxIdle) return;
    auto it = std::find_if(model.workspaces_.begin(), model.workspaces_.end(),
                           [&](const auto& w) { return w.get() == workspace; });
    dropped = std::move(*it);
    model.workspaces_.erase(it);
  }
  Turn(const Turn&) = delete;
  Model& model;
  Workspace* workspace = nullptr;
};

void Model::arenas(int64_t* bytes, int32_t* count) const {
  int64_t total = streamer_ ? streamer_->arena_bytes() : 0;
  int32_t n = streamer_ ? 1 : 0;
  if (!streamer_) {
    std::lock_guard<std::mutex> guard(short_lock());
    for (const auto& w : workspaces_) {
      total += w->bytes.load(std::memory_order_relaxed);
      ++n;
    }
  }
  if (bytes) *bytes = total;
  if (count) *count = n;
}

void Model::infer(int index, const effc_array* in, int n_in, effc_array* out, int n_out) {
  Entry& e = entry(index);
  if (n_out != int(e.outputs.size())) fail("the model has %d outputs, %d were asked for", int(e.outputs.size()), n_out);
  Lease lease(e, threads, streamer_.get(), &far_);
  lease.take_inputs(in, n_in);
  lease.context->frame.bind(lease.context->inputs.data(), nullptr);
  const Program& p = *e.program;
  const Plan& plan = lease.context->frame.plan();
  for (int i = 0; i < n_out; ++i) {
    const Value& v = p.values[size_t(p.outputs[size_t(i)])];
    out[i].dtype = v.dtype;
    out[i].rank = v.rank;
    for (int d = 0; d < v.rank; ++d) {
      Dim dim = v.shape[size_t(d)];
      out[i].shape[d] = p.dims.late(dim) ? -1 : plan.env[size_t(dim)];
    }
    row_major(v.rank, out[i].shape, out[i].strides);
  }
}

void Model::arena(int index, const effc_array* in, int n_in, int64_t* bytes, int64_t* bound) {
  Lease lease(entry(index), threads, streamer_.get(), &far_);
  lease.take_inputs(in, n_in);
  lease.context->frame.bind(lease.context->inputs.data(), nullptr);
  if (bytes) *bytes = lease.context->frame.plan().arena_bytes;
  if (bound) *bound = lease.context->frame.plan().lower_bound;
}

int Model::arena_blocks(int index, const effc_array* in, int n_in, effc_block* blocks, int capacity) {
  Lease lease(entry(index), threads, streamer_.get(), &far_);
  lease.take_inputs(in, n_in);
  lease.context->frame.bind(lease.context->inputs.data(), nullptr);
  const std::vector<Plan::Placed>& placed = lease.context->frame.plan().placed;
  for (size_t i = 0; i < placed.size() && int64_t(i) < capacity; ++i) {
    const Plan::Placed& b = placed[i];
    blocks[i] = {b.id >= 0 ? b.id : -1, b.first, b.last, b.bytes, b.at};
  }
  return int(placed.size());
}

void Model::run(int index, Session* use, const effc_array* in, int n_in, effc_array* out, int n_out) {
  Entry& e = entry(index);
  if (n_out != int(e.outputs.size())) fail("the model has %d outputs, %d were given", int(e.outputs.size()), n_out);
  verify_weights();
  Session& s = use ? *use : *session;
  if (&s.linker != &linker) fail("the session belongs to another model");
  std::unique_lock<std::mutex> turn;
  if (streamer_) turn = streamer_->turn();
  Lease lease(e, threads, streamer_.get(), &far_);
  Context& c = *lease.context;
  lease.take_inputs(in, n_in);
  for (int i = 0; i < n_in; ++i) {
    if (in[i].data) continue;
    int64_t count = 1;
    for (int d = 0; d < in[i].rank; ++d)
      count = in[i].shape[d] == 0 ? 0 : count;
    if (count) fail("input '%s' has no data", e.inputs[size_t(i)].name.c_str());
  }
  c.frame.bind(c.inputs.data(), nullptr);
  for (int i = 0; i < n_out; ++i) {
    Target& t = c.outputs[size_t(i)];
    t = Target();
    t.alloc = [](void*, int64_t bytes) { return static_cast<char*>(alloc_bytes(bytes)); };
    if (!out[i].data) continue;
    const IoInfo& io = e.outputs[size_t(i)];
    if (out[i].dtype != io.dtype || out[i].rank != int(io.shape.size()))
      fail("the array for output %d has another dtype or rank than the output", i);
    if (!is_row_major(out[i].rank, out[i].shape, out[i].strides)) fail("the array for output %d is not row-major", i);
    t.data = static_cast<char*>(out[i].data);
    t.rank = out[i].rank;
    std::copy(out[i].shape, out[i].shape + out[i].rank, t.shape);
  }
  c.state.session = &s;
  c.state.profile = profiling.load(std::memory_order_relaxed) ? e.profile.get() : nullptr;
  try {
    std::unique_lock<std::mutex> lock(s.run_lock, std::defer_lock);
    if (e.program->uses_state) lock.lock();
    Turn mine(*this, c);
    c.frame.use(*mine.workspace);
    if (streamer_) streamer_->begin(*e.program);
    c.frame.run(c.inputs.data(), c.outputs.data());
    if (streamer_) streamer_->end();
  } catch (...) {
    if (streamer_) streamer_->end();
    for (Target& t : c.outputs)
      if (t.allocated) free_bytes(t.data);
    throw;
  }
  for (int i = 0; i < n_out; ++i) {
    const Target& t = c.outputs[size_t(i)];
    out[i].owner = t.allocated ? t.data : nullptr;
    if (!t.allocated) continue;
    out[i].data = t.data;
    out[i].dtype = e.outputs[size_t(i)].dtype;
    out[i].rank = t.rank;
    std::copy(t.shape, t.shape + t.rank, out[i].shape);
    row_major(t.rank, out[i].shape, out[i].strides);
  }
}

}  // namespace effc_rt
