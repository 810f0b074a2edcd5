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
    int64_t* loose;  // [nodes]: another with this peak, as the search left it
    int64_t peak, bound, cut_bound, states;
    int32_t ended;
} effc_mem_ordered;

// 0; 1: no memory left; 2: the order given is not one of this graph.
int EFFC_MEM_API effc_mem_order(const effc_mem_graph* in, effc_mem_ordered* out);

// A graph against a capacity. Costs are in bytes moved; what runs again costs `rerun`.
typedef struct {
    int64_t nodes, tensors;
    const int64_t *in_first, *in, *out_first, *out;  // of nodes: operands and results, distinct
    const int64_t *after_first, *after;              // nodes that must have run
    const int64_t *over_first, *over;                // operands that the result may overwrite
    const int64_t *part_first, *part;                // operands that may be made inside the result
    const int64_t *write_first, *write;              // operands that are changed
    const int64_t *bytes, *move, *copy;              // [tensors]: size; the cost to bring it back; to have a copy, once
    const int64_t *workspace, *rerun;                // [nodes]; rerun: -1 where it must not
    const uint8_t* stays;                            // [tensors]: resident at the end
    int64_t capacity;
    int64_t length;  // of the sequence to start with
    const int64_t* start;
    int64_t recompute, seed;
    int64_t budget;  // of work: steps evaluated
    double seconds;  // an outer guard
    double heat;     // of the annealing at its start, as a part of the cost; 0: the usual
} effc_mem_limited;

typedef struct {
    int64_t* sequence;
    int64_t room, length, cost, start_cost, evaluations;
    int32_t ended;
} effc_mem_sequence;

typedef struct {
    int64_t *tensor, *from, *to, *group;  // uses at steps from and to, none between; group: copies count once in it
    uint8_t* out;
    int64_t room, count, cost;
} effc_mem_gaps;

// 0; 1: no memory left; 2: no sequence of this graph; 3: too little room.
int EFFC_MEM_API effc_mem_limit(const effc_mem_limited* in, effc_mem_sequence* out);

// Which gaps are best out in the sequence: capacity[length + 1] of each step or null, forced: gaps that are out or null.
int EFFC_MEM_API effc_mem_evict(const effc_mem_limited* in, const int64_t* capacity, const uint8_t* forced,
                                effc_mem_gaps* out);

#ifdef __cplusplus
}
#endif
