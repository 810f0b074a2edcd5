// The C API: argument checks, and exceptions turned into status codes.
#include <algorithm>
#include <new>

#include "effc.h"
#include "exec.hpp"
#include "isa.hpp"
#include "pool.hpp"
#include "xxh3.hpp"

using namespace effc_rt;

struct effc_model : Model {
  using Model::Model;
};
struct effc_session : Session {
  using Session::Session;
};

namespace {

thread_local std::string t_error;

template <class F>
int32_t guarded(F&& f) {
  try {
    f();
    return 0;
  } catch (const std::bad_alloc&) {
    t_error = "out of memory";
  } catch (const std::exception& e) {
    t_error = e.what();
  }
  return 1;
}

const Entry* find_entry(const effc_model* m, int32_t entry) {
  return m && entry >= 0 && size_t(entry) < m->entries.size() ? m->entries[size_t(entry)].get() : nullptr;
}

void need(bool ok, const char* what) {
  if (!ok) fail("%s", what);
}

int32_t describe(const std::vector<IoInfo>& list, int32_t i, effc_io* io) {
  return guarded([&] {
    need(io && i >= 0 && size_t(i) < list.size(), "there is no such input or output");
    const IoInfo& info = list[size_t(i)];
    io->name = info.name.c_str();
    io->dtype = info.dtype;
    io->rank = int32_t(info.shape.size());
    std::copy(info.shape.begin(), info.shape.end(), io->shape);
    io->written = info.written;
  });
}

Session& pick(effc_model* m, effc_session* s) {
  need(m != nullptr, "the model is NULL");
  return s ? static_cast<Session&>(*s) : *m->session;
}

}  // namespace

extern "C" {

const char* effc_version(void) { return EFFC_RT_VERSION; }

const char* effc_cpu_features(void) {
  static const std::string text = [] {
    std::string t;
    for (const std::string& f : cpu_features())
      t += (t.empty() ? "" : " ") + f;
    return t;
  }();
  return text.c_str();
}

const char* effc_last_error(void) { return t_error.c_str(); }

int32_t effc_load(const char* path, const effc_options* options, effc_model** model) {
  return guarded([&] {
    need(path && model, "effc_load needs a path and a place for the model");
    *model = nullptr;
    *model = new effc_model(path, options ? options->num_threads : 0);
  });
}

void effc_free(effc_model* model) { delete model; }

const char* effc_manifest(const effc_model* model, size_t* size) {
  if (size) *size = model->manifest.size();
  return model->manifest.c_str();
}

int32_t effc_num_threads(const effc_model* model) { return model->threads; }
int32_t effc_num_entries(const effc_model* model) { return int32_t(model->entries.size()); }

const char* effc_entry_name(const effc_model* model, int32_t entry) {
  const Entry* e = find_entry(model, entry);
  return e ? e->name.c_str() : nullptr;
}

int32_t effc_find_entry(const effc_model* model, const char* name) {
  for (size_t i = 0; model && name && i < model->entries.size(); ++i)
    if (model->entries[i]->name == name) return int32_t(i);
  return -1;
}

int32_t effc_num_inputs(const effc_model* model, int32_t entry) {
  const Entry* e = find_entry(model, entry);
  return e ? int32_t(e->inputs.size()) : -1;
}

int32_t effc_num_outputs(const effc_model* model, int32_t entry) {
  const Entry* e = find_entry(model, entry);
  return e ? int32_t(e->outputs.size()) : -1;
}

int32_t effc_input(const effc_model* model, int32_t entry, int32_t i, effc_io* io) {
  static const std::vector<IoInfo> none;
  const Entry* e = find_entry(model, entry);
  return describe(e ? e->inputs : none, i, io);
}

int32_t effc_output(const effc_model* model, int32_t entry, int32_t i, effc_io* io) {
  static const std::vector<IoInfo> none;
  const Entry* e = find_entry(model, entry);
  return describe(e ? e->outputs : none, i, io);
}

int32_t effc_session_new(effc_model* model, effc_session** session) {
  return guarded([&] {
    need(model && session, "effc_session_new needs a model and a place for the session");
    *session = new effc_session(model->linker);
  });
}

void effc_session_free(effc_session* session) { delete session; }

int32_t effc_session_seed(effc_model* model, effc_session* session, uint64_t seed) {
  return guarded([&] {
    Session& s = pick(model, session);
    std::lock_guard<std::mutex> lock(s.run_lock);
    s.seed = seed;
    s.counter = 0;
  });
}

int32_t effc_session_reset(effc_model* model, effc_session* session) {
  return guarded([&] {
    Session& s = pick(model, session);
    std::lock_guard<std::mutex> lock(s.run_lock);
    s.release();
  });
}

int32_t effc_session_state(effc_model* model, effc_session* session, const char* name, void* data, size_t nbytes,
                           int32_t write) {
  return guarded([&] {
    Session& s = pick(model, session);
    need(name && (data || nbytes == 0), "effc_session_state needs a name and data");
    int i = -1;
    for (size_t k = 0; k < s.linker.states.size(); ++k)
      if (s.linker.states[k].name == name) i = int(k);
    if (i < 0) fail("the model has no state '%s'", name);
    if (uint64_t(s.linker.states[size_t(i)].nbytes) != nbytes)
      fail("state '%s' has %lld bytes, not %lld", name, static_cast<long long>(s.linker.states[size_t(i)].nbytes),
           static_cast<long long>(nbytes));
    std::lock_guard<std::mutex> lock(s.run_lock);
    char* p = s.state(i);
    if (nbytes) memcpy(write ? static_cast<void*>(p) : data, write ? data : static_cast<void*>(p), nbytes);
  });
}

int32_t effc_infer_shapes(effc_model* model, int32_t entry, const effc_array* inputs, int32_t n_inputs,
                          effc_array* outputs, int32_t n_outputs) {
  return guarded([&] {
    need(model && (inputs || !n_inputs) && (outputs || !n_outputs), "effc_infer_shapes got a NULL argument");
    model->infer(entry, inputs, n_inputs, outputs, n_outputs);
  });
}

int32_t effc_run(effc_model* model, int32_t entry, effc_session* session, const effc_array* inputs, int32_t n_inputs,
                 effc_array* outputs, int32_t n_outputs) {
  return guarded([&] {
    need(model && (inputs || !n_inputs) && (outputs || !n_outputs), "effc_run got a NULL argument");
    model->run(entry, session, inputs, n_inputs, outputs, n_outputs);
  });
}

void effc_array_init(effc_array* array, void* data, int32_t dtype, int32_t rank, const int64_t* shape) {
  *array = effc_array();
  array->data = data;
  array->dtype = dtype;
  array->rank = rank;
  int64_t n = 1;
  for (int32_t i = std::min(rank, EFFC_MAX_RANK) - 1; i >= 0; --i) {
    array->shape[i] = shape[i];
    array->strides[i] = n;
    n *= shape[i] > 0 ? shape[i] : 1;
  }
}

void effc_array_free(effc_array* array) {
  if (!array || !array->owner) return;
  free_bytes(array->owner);
  array->owner = array->data = nullptr;
}

void effc_profile_enable(effc_model* model, int32_t on) {
  for (auto& e : model->entries)
    for (size_t i = 0; i < e->instructions.size(); ++i) {
      ProfileSlot& s = e->profile[i];
      s.calls = 0;
      s.ns = 0;
      s.flops = 0;
      s.bytes = 0;
    }
  model->profiling = on != 0;
}

int32_t effc_profile_count(const effc_model* model, int32_t entry) {
  const Entry* e = find_entry(model, entry);
  return e ? int32_t(e->instructions.size()) : -1;
}

int32_t effc_profile_get(const effc_model* model, int32_t entry, int32_t i, effc_profile* out) {
  return guarded([&] {
    const Entry* e = find_entry(model, entry);
    need(e && out && i >= 0 && size_t(i) < e->instructions.size(), "there is no such instruction");
    const auto& [instr, depth] = e->instructions[size_t(i)];
    const ProfileSlot& s = e->profile[size_t(i)];
    *out = {instr->name.c_str(), instr->kernel.c_str(), instr->loc.c_str(), depth, s.calls, s.ns, s.flops, s.bytes};
  });
}

int32_t effc_arena(effc_model* model, int32_t entry, const effc_array* inputs, int32_t n_inputs, int64_t* bytes,
                   int64_t* lower_bound) {
  return guarded([&] {
    need(model && (inputs || !n_inputs), "effc_arena got a NULL argument");
    model->arena(entry, inputs, n_inputs, bytes, lower_bound);
  });
}

int32_t effc_arena_blocks(effc_model* model, int32_t entry, const effc_array* inputs, int32_t n_inputs,
                          effc_block* blocks, int32_t capacity, int32_t* count) {
  return guarded([&] {
    need(model && count && (inputs || !n_inputs) && (blocks || capacity <= 0), "effc_arena_blocks got a NULL argument");
    *count = model->arena_blocks(entry, inputs, n_inputs, blocks, capacity);
  });
}

int32_t effc_arenas(const effc_model* model, int64_t* bytes, int32_t* count) {
  return guarded([&] {
    need(model != nullptr, "effc_arenas got a NULL argument");
    model->arenas(bytes, count);
  });
}

int32_t effc_stream_stats(const effc_model* model, effc_stream* out) {
  return guarded([&] {
    need(model && out, "effc_stream_stats got a NULL argument");
    *out = effc_stream();
    if (model->streamer()) model->streamer()->report(out);
  });
}

int32_t effc_spill_stats(const effc_model* model, effc_spill* out) {
  return guarded([&] {
    need(model && out, "effc_spill_stats got a NULL argument");
    *out = effc_spill();
    model->far().report(out);
  });
}

uint64_t effc_alloc_count(void) { return g_allocs.load(); }
void effc_prefer_huge_pages(void* data, size_t size) { prefer_huge_pages(data, int64_t(size)); }
uint64_t effc_xxh3(const void* data, size_t size) { return xxh3_64(data, size); }
void effc_parallel_for(int32_t threads, int64_t n, int64_t grain, effc_task_fn fn, void* arg) {
  parallel_for(threads, n, grain, fn, arg);
}

}  // extern "C"
