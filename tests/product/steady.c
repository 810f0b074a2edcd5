/* steady MODEL.effc RUNS [@ENTRY] SHAPE...: runs an artifact on made-up inputs of these shapes ("8x128", "-" for a
 * scalar), in turn with those of a second set after "/", each of the entry point named or the first, and prints for each
 * run what was allocated during it: calls of malloc and its kin, calls of mmap, the runtime's own count, and by how many
 * KiB the process's anonymous memory grew. At last, for each set, the arena's bytes as planned, and what the model's
 * arenas hold. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "effc.h"

static long mallocs, mmaps;
extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
#define COUNT(n) __atomic_add_fetch(&(n), 1, __ATOMIC_RELAXED)
void* malloc(size_t n) { COUNT(mallocs); return __libc_malloc(n); }
void* calloc(size_t a, size_t b) { COUNT(mallocs); return __libc_calloc(a, b); }
void* realloc(void* p, size_t n) { COUNT(mallocs); return __libc_realloc(p, n); }
void* memalign(size_t a, size_t n) { COUNT(mallocs); return __libc_memalign(a, n); }
void* aligned_alloc(size_t a, size_t n) { return memalign(a, n); }
int posix_memalign(void** p, size_t a, size_t n) { *p = memalign(a, n); return !*p; }
/* operator new of libstdc++ calls malloc. */
void* mmap(void* at, size_t n, int prot, int flags, int fd, off_t offset) {
  static void* (*next)(void*, size_t, int, int, int, off_t);
  if (!next) *(void**)&next = dlsym(RTLD_NEXT, "mmap");
  COUNT(mmaps);
  return next(at, n, prot, flags, fd, offset);
}

static long anonymous_kib(void) {
  char line[256];
  long kib = -1;
  FILE* f = fopen("/proc/self/smaps_rollup", "r");
  while (f && fgets(line, sizeof line, f))
    if (sscanf(line, "Anonymous: %ld kB", &kib) == 1) break;
  if (f) fclose(f);
  return kib;
}

enum { MAX_IO = 16, MAX_SETS = 4 };
static int entry[MAX_SETS], n_in[MAX_SETS], n_out[MAX_SETS];

static int die(const char* what) {
  fprintf(stderr, "%s: %s\n", what, effc_last_error());
  return 1;
}

int main(int argc, char** argv) {
  effc_model* model;
  static effc_array in[MAX_SETS][MAX_IO], out[MAX_SETS][MAX_IO];
  if (argc < 3 || effc_load(argv[1], NULL, &model)) return die("load");
  int sets = 1, k = 0;
  for (int a = 3; a < argc; ++a) {
    if (!strcmp(argv[a], "/")) {
      ++sets;
      k = 0;
      continue;
    }
    if (*argv[a] == '@') {
      entry[sets - 1] = effc_find_entry(model, argv[a] + 1);
      continue;
    }
    effc_io io;
    effc_input(model, entry[sets - 1], k, &io);
    int64_t shape[EFFC_MAX_RANK], count = 1;
    int rank = 0;
    for (char* s = argv[a]; *s && *s != '-';) {
      shape[rank] = strtol(s, &s, 10);
      count *= shape[rank++];
      if (*s == 'x') ++s;
    }
    char* data = calloc(count ? count : 1, 16);
    for (int64_t i = 0; i < count; ++i) {
      if (io.dtype == EFFC_F32) ((float*)data)[i] = (float)((i * 2654435761u >> 7) % 2001) / 1000 - 1;
      if (io.dtype == EFFC_I64) ((int64_t*)data)[i] = 1 + i % 3;
      if (io.dtype == EFFC_BOOL) data[i] = 1;
    }
    effc_array_init(&in[sets - 1][k++], data, io.dtype, rank, shape);
  }
  for (int s = 0; s < sets; ++s) {
    n_in[s] = effc_num_inputs(model, entry[s]);
    n_out[s] = effc_num_outputs(model, entry[s]);
    if (effc_infer_shapes(model, entry[s], in[s], n_in[s], out[s], n_out[s])) return die("infer");
    for (int i = 0; i < n_out[s]; ++i) {
      int64_t bytes = 16;
      for (int d = 0; d < out[s][i].rank; ++d) bytes *= out[s][i].shape[d];
      out[s][i].data = malloc((size_t)bytes + 64);
      memset(out[s][i].data, 0, (size_t)bytes + 64);
    }
  }
  anonymous_kib();
  for (int run = 0; run < atoi(argv[2]); ++run) {
    int s = run % sets;
    long kib = anonymous_kib(), before = mallocs, maps = mmaps;
    uint64_t counted = effc_alloc_count();
    if (effc_run(model, entry[s], NULL, in[s], n_in[s], out[s], n_out[s])) return die("run");
    before = mallocs - before, maps = mmaps - maps, counted = effc_alloc_count() - counted;
    printf("run %ld %ld %ld %ld\n", before, maps, (long)counted, anonymous_kib() - kib);
  }
  for (int s = 0; s < sets; ++s) {
    int64_t bytes, bound;
    if (effc_arena(model, entry[s], in[s], n_in[s], &bytes, &bound)) return die("arena");
    printf("arena %lld %lld\n", (long long)bytes, (long long)bound);
  }
  int64_t bytes;
  int32_t count;
  if (effc_arenas(model, &bytes, &count)) return die("arenas");
  printf("arenas %lld %d\n", (long long)bytes, (int)count);
  effc_free(model);
  return 0;
}
