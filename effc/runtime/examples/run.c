/* Runs an artifact from C and prints its outputs.
 *
 *   cc run.c -I<include> -L<lib> -leffc_rt -Wl,-rpath,<lib> -o run
 *   ./run model.effc [size]
 *
 * Sizes that vary are set to `size` (default 2). Every input element i is filled with sin(i) (floats) or i % 2
 * (integers, bool). <include> and <lib> are printed by:  python -m effc.runtime.build_rt
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "effc.h"

#define MAX_ARRAYS 64

static size_t item_size(int32_t dtype) {
  static const unsigned char size[] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8, 1, 1, 8, 16, 4};
  return size[dtype];
}

static int64_t count(const effc_array* a) {
  int64_t n = 1;
  for (int32_t d = 0; d < a->rank; ++d)
    n *= a->shape[d];
  return n;
}

static int fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, effc_last_error());
  return 1;
}

static void fill(effc_array* a) {
  int64_t n = count(a);
  for (int64_t i = 0; i < n; ++i) {
    switch (a->dtype) {
      case EFFC_F32: ((float*)a->data)[i] = (float)sin((double)i); break;
      case EFFC_F64: ((double*)a->data)[i] = sin((double)i); break;
      case EFFC_I64: ((int64_t*)a->data)[i] = i % 2; break;
      case EFFC_I32: ((int32_t*)a->data)[i] = (int32_t)(i % 2); break;
      case EFFC_BOOL: ((unsigned char*)a->data)[i] = (unsigned char)(i % 2); break;
      default: break; /* zeros */
    }
  }
}

static void print(const effc_array* a) {
  int64_t n = count(a);
  for (int64_t i = 0; i < n; ++i) {
    switch (a->dtype) {
      case EFFC_F32: printf("%.9g\n", (double)((float*)a->data)[i]); break;
      case EFFC_F64: printf("%.17g\n", ((double*)a->data)[i]); break;
      case EFFC_I64: printf("%lld\n", (long long)((int64_t*)a->data)[i]); break;
      case EFFC_I32: printf("%d\n", ((int32_t*)a->data)[i]); break;
      case EFFC_BOOL: printf("%d\n", ((unsigned char*)a->data)[i]); break;
      default: printf("?\n");
    }
  }
}

int main(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s model.effc [size]\n", argv[0]);
    return 2;
  }
  int64_t size = argc > 2 ? atoll(argv[2]) : 2;
  effc_model* model;
  if (effc_load(argv[1], NULL, &model) != 0) return fail("load");

  effc_array in[MAX_ARRAYS], out[MAX_ARRAYS];
  int32_t n_in = effc_num_inputs(model, 0), n_out = effc_num_outputs(model, 0);
  if (n_in > MAX_ARRAYS || n_out > MAX_ARRAYS) return 2;
  for (int32_t i = 0; i < n_in; ++i) {
    effc_io io;
    if (effc_input(model, 0, i, &io) != 0) return fail("input");
    for (int32_t d = 0; d < io.rank; ++d)
      if (io.shape[d] < 0) io.shape[d] = size;
    effc_array_init(&in[i], NULL, io.dtype, io.rank, io.shape);
    in[i].data = calloc((size_t)count(&in[i]) + 1, item_size(io.dtype));
    if (!in[i].data) return 2;
    fill(&in[i]);
  }
  for (int32_t i = 0; i < n_out; ++i)
    effc_array_init(&out[i], NULL, 0, 0, NULL); /* the runtime allocates */

  if (effc_run(model, 0, NULL, in, n_in, out, n_out) != 0) return fail("run");

  for (int32_t i = 0; i < n_out; ++i) {
    printf("output %d: dtype %d, shape", i, out[i].dtype);
    for (int32_t d = 0; d < out[i].rank; ++d)
      printf(" %lld", (long long)out[i].shape[d]);
    printf("\n");
    print(&out[i]);
    effc_array_free(&out[i]);
  }
  for (int32_t i = 0; i < n_in; ++i)
    free(in[i].data);
  effc_free(model);
  return 0;
}
