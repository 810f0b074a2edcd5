// The C interface of the memory planner's searches. All arrays are the caller's; nothing is kept between calls.
#pragma once

#include <stdint.h>

#define EFFC_MEM_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// Why a search ended.
enum { EFFC_MEM_PROVEN = 0, EFFC_MEM_BUDGET = 1, EFFC_MEM_TIME = 2 };

typedef struct {
    int64_t buffers;
    const int64_t* align;   // [buffers]
    const int64_t* pinned;  // [buffers]: a fixed offset, or -1
    // Boxes of each buffer: part_first[i] .. part_first[i + 1]; steps start..stop, both included, bytes lo..hi from the
    // buffer's offset. An ordinary buffer has one, from 0 to its size.
    const int64_t* part_first;  // [buffers + 1]
    const int64_t *part_start, *part_stop, *part_lo, *part_hi;
    int64_t bound;   // no placement is lower
    int64_t budget;  // work for one capacity: visits to buffers
    double seconds;  // an outer guard: what ends by it is not reproducible
} effc_mem_placement;

typedef struct {
    int64_t* offset;  // [buffers]
    int64_t total, bound, nodes;
    int32_t ended, how;  // how: number of the greedy order, 50 improved, 60 searched
} effc_mem_placed;

int EFFC_MEM_API effc_mem_place(const effc_mem_placement* in, effc_mem_placed* out);

typedef struct {
    int64_t nodes, tensors;
    const int64_t *bytes, *producer;  // [tensors]
    const uint8_t* stays;             // [tensors]: live to the end once made
    const int64_t *use_first, *use;   // consumers of each tensor (distinct): use[use_first[t] .. use_first[t + 1]]
    const int64_t *after_first, *after;        // predecessors of each node that pass no tensor
    const int64_t* workspace;                  // [nodes]: bytes live during the node alone
    const int64_t *over_first, *over;          // tensors whose bytes the node's output may take if this is their last use
    const int64_t* absorbed;                   // [nodes]: bytes of inputs that lie in the node's output already
    const int64_t* given;                      // [nodes]: the order given
    int64_t budget;                            // states
    double seconds;
} effc_mem_graph;

typedef struct {
    int64_t* order;  // [nodes]
    int64_t peak, bound, cut_bound, states;
    int32_t ended;
} effc_mem_ordered;

// 0; 1: no memory left; 2: the order given is not one of this graph.
int EFFC_MEM_API effc_mem_order(const effc_mem_graph* in, effc_mem_ordered* out);

#ifdef __cplusplus
}
#endif
