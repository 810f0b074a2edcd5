/* effc from C: load a compiled model (.effc) and run it.
 *
 *   effc_model* model;
 *   if (effc_load("model.effc", NULL, &model) != 0) { puts(effc_last_error()); return 1; }
 *   int64_t shape[] = {1, 128};
 *   effc_array in, out;
 *   effc_array_init(&in, data, EFFC_F32, 2, shape);
 *   effc_array_init(&out, NULL, EFFC_F32, 0, NULL);              -- data NULL: effc_run allocates
 *   if (effc_run(model, 0, NULL, &in, 1, &out, 1) != 0) ...
 *   effc_array_free(&out);
 *   effc_free(model);
 *
 * Functions that can fail return 0 on success; otherwise effc_last_error() says why. A loaded model may be used from
 * any number of threads at once. Two runs on one session of a model with state take turns. Link with libeffc_rt.so. An
 * artifact holds native code: load only files from sources you trust. Its weights are mapped from the file: replace a
 * file that is in use by renaming another over it, never by writing into it. After fork() a child may go on using a
 * model, but not a session that another thread was running at that moment.
 */
#ifndef EFFC_H
#define EFFC_H
#include <stddef.h>
#include <stdint.h>

#include "effc_kernel.h" /* dtypes, EFFC_MAX_RANK */

#define EFFC_RT_VERSION "0.1.0"
#define EFFC_FORMAT_VERSION 1

#if defined(EFFC_RT_BUILD)
#define EFFC_API __attribute__((visibility("default")))
#else
#define EFFC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct effc_model effc_model;
typedef struct effc_session effc_session;

/* A strided array in host memory. Strides are in elements, any sign. */
typedef struct effc_array {
  void* data;
  int32_t dtype; /* effc_dtype */
  int32_t rank;
  int64_t shape[EFFC_MAX_RANK];
  int64_t strides[EFFC_MAX_RANK];
  void* owner; /* not NULL: effc_run allocated the data; effc_array_free releases it */
} effc_array;

typedef struct effc_options {
  int32_t num_threads; /* 0: EFFC_NUM_THREADS, else the CPUs this process may use */
} effc_options;

/* One input or output of an entry point. Sizes that vary are -1. Names live as long as the model. */
typedef struct effc_io {
  const char* name;
  int32_t dtype;
  int32_t rank;
  int64_t shape[EFFC_MAX_RANK];
  int32_t written; /* an input that a run writes back to (the model changes it in place) */
} effc_io;

EFFC_API const char* effc_version(void);
/* Features of this CPU that the operating system enables, separated by spaces. */
EFFC_API const char* effc_cpu_features(void);
/* Why the last call on this thread failed. */
EFFC_API const char* effc_last_error(void);

/* Loads an artifact: checks its structure, this CPU and the checksums before any of its code is mapped (weights beyond
 * 32 MiB are checked by the first run instead). `options` may be NULL. */
EFFC_API int32_t effc_load(const char* path, const effc_options* options, effc_model** model);
EFFC_API void effc_free(effc_model* model); /* sessions of the model must be freed before */
/* The artifact's manifest.json. */
EFFC_API const char* effc_manifest(const effc_model* model, size_t* size);
EFFC_API int32_t effc_num_threads(const effc_model* model);

/* Entry points are numbered as in the manifest; a model compiled with effc.compile has one, 0. */
EFFC_API int32_t effc_num_entries(const effc_model* model);
EFFC_API const char* effc_entry_name(const effc_model* model, int32_t entry);
EFFC_API int32_t effc_find_entry(const effc_model* model, const char* name); /* -1: none */
EFFC_API int32_t effc_num_inputs(const effc_model* model, int32_t entry);
EFFC_API int32_t effc_num_outputs(const effc_model* model, int32_t entry);
EFFC_API int32_t effc_input(const effc_model* model, int32_t entry, int32_t i, effc_io* io);
EFFC_API int32_t effc_output(const effc_model* model, int32_t entry, int32_t i, effc_io* io);

/* A session holds the state a model changes (caches, buffers) and its random numbers. NULL where one is asked for means
 * the model's default session. */
EFFC_API int32_t effc_session_new(effc_model* model, effc_session** session);
EFFC_API void effc_session_free(effc_session* session);
EFFC_API int32_t effc_session_seed(effc_model* model, effc_session* session, uint64_t seed);
EFFC_API int32_t effc_session_reset(effc_model* model, effc_session* session); /* states as they were at load */
/* Copies a state's bytes out of (write == 0) or into (write != 0) a session; nbytes must match. */
EFFC_API int32_t effc_session_state(effc_model* model, effc_session* session, const char* name, void* data,
                                    size_t nbytes, int32_t write);

/* Fills in dtype, rank, shape and row-major strides of the outputs for these inputs (whose data may be NULL unless an
 * integer argument decides a size). A size that depends on data is -1. */
EFFC_API int32_t effc_infer_shapes(effc_model* model, int32_t entry, const effc_array* inputs, int32_t n_inputs,
                                   effc_array* outputs, int32_t n_outputs);

/* Runs an entry point. Inputs are borrowed; those the model changes are written back. An output whose data is NULL is
 * allocated, and described, by the runtime; otherwise its dtype and shape must be the inferred ones and it must be
 * row-major. Outputs must not overlap inputs. */
EFFC_API int32_t effc_run(effc_model* model, int32_t entry, effc_session* session, const effc_array* inputs,
                          int32_t n_inputs, effc_array* outputs, int32_t n_outputs);

EFFC_API void effc_array_init(effc_array* array, void* data, int32_t dtype, int32_t rank, const int64_t* shape);
EFFC_API void effc_array_free(effc_array* array);

/* Time spent per instruction, counted while profiling is on. Nested programs' instructions follow the one that holds
 * them. */
typedef struct effc_profile {
  const char* name;   /* the instruction's name */
  const char* kernel; /* the kernel's symbol, or "if", "while", "scan" */
  const char* loc;    /* the user's source line, or "" */
  int32_t depth;      /* 0, or how deep inside control flow */
  uint64_t calls, ns;
  int64_t flops, bytes; /* of all calls together, as the compiler counted them */
} effc_profile;
EFFC_API void effc_profile_enable(effc_model* model, int32_t on); /* clears the counts */
EFFC_API int32_t effc_profile_count(const effc_model* model, int32_t entry);
EFFC_API int32_t effc_profile_get(const effc_model* model, int32_t entry, int32_t i, effc_profile* out);

/* Bytes of temporary memory for these inputs, and the bound below which no plan could go. */
EFFC_API int32_t effc_arena(effc_model* model, int32_t entry, const effc_array* inputs, int32_t n_inputs,
                            int64_t* bytes, int64_t* lower_bound);

/* Bytes of the arenas that runs have made since the model was loaded, and how many there are. Runs that take turns share
 * one, whichever entry points they are of: it is as large as the largest of them needed. Runs that overlapped in time had
 * one each. Results and states lie elsewhere. Either may be NULL. */
EFFC_API int32_t effc_arenas(const effc_model* model, int64_t* bytes, int32_t* count);

/* What lies in the arena for these inputs: a value of the program, or the workspace of an instruction (value -1), live
 * from instruction `first` to `last`, both included. Of control flow, the workspace holds all of the nested programs.
 * Fills in up to `capacity` blocks; `count` says how many there are. */
typedef struct effc_block {
  int32_t value, first, last;
  int64_t bytes, offset;
} effc_block;
EFFC_API int32_t effc_arena_blocks(effc_model* model, int32_t entry, const effc_array* inputs, int32_t n_inputs,
                                   effc_block* blocks, int32_t capacity, int32_t* count);

/* What an artifact compiled with memory_budget reads while it runs, counted since it was loaded. All zero for others.
 * Sizes in bytes. Runs of such a model take turns: it has one window and one arena. */
typedef struct effc_stream {
  int64_t budget, arena, window, resident; /* resident: weights that stay in memory */
  uint64_t runs;
  uint64_t pieces, bytes;    /* weights read into the window */
  uint64_t rows, row_bytes;  /* rows of embedding tables, and what of them came from the file */
  uint64_t waits, wait_ns;   /* times that a run waited for weights, and for how long */
  uint64_t run_ns;           /* of all runs together */
  uint64_t chunks_checked;   /* checksums; each is checked once */
  int32_t direct;            /* reads go past the page cache (EFFC_STREAM_DIRECT=0: not) */
  int32_t prefetch;          /* a thread reads ahead (EFFC_STREAM_PREFETCH=0: not) */
} effc_stream;
EFFC_API int32_t effc_stream_stats(const effc_model* model, effc_stream* out);

/* What an artifact compiled with arena_budget copied out of its arena and back, counted since it was loaded. All zero
 * for others. The copies lie in a file without a name in $TMPDIR (else /var/tmp, else /tmp), one for each run that was
 * ever beside another. */
typedef struct effc_spill {
  uint64_t spills, spill_bytes;   /* copies out of the arena */
  uint64_t refills, refill_bytes; /* copies back */
  uint64_t ns;                    /* that both took */
  uint64_t files;                 /* files opened: a warm run opens none */
  int64_t file_bytes;             /* of the largest of them */
  int32_t in_memory;              /* that folder is a tmpfs: what is spilled stays in memory, or swap */
  uint64_t ahead_bytes;           /* asked for ahead of copies back, as they were on the disk alone */
} effc_spill;
EFFC_API int32_t effc_spill_stats(const effc_model* model, effc_spill* out);

/* Memory allocations made by runs so far, by the whole process: a warm run with the same sizes makes none. */
EFFC_API uint64_t effc_alloc_count(void);
/* For a result that the caller allocates, of some MiB and more: asks for huge pages, so that writing it the first time
   costs few page faults. A hint; whole 2 MiB pages inside the range are named to the kernel. */
EFFC_API void effc_prefer_huge_pages(void* data, size_t size);
/* XXH3, 64 bits: the artifact's checksum. */
EFFC_API uint64_t effc_xxh3(const void* data, size_t size);
/* The thread pool, for tests and for measuring it. */
EFFC_API void effc_parallel_for(int32_t threads, int64_t n, int64_t grain, effc_task_fn fn, void* arg);

#ifdef __cplusplus
}
#endif
#endif
