// Maximum flow (Dinic, 1970). Residual reachability gives the smallest and the largest minimum cut.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace effc_memory {

constexpr int64_t UNBOUNDED = INT64_MAX / 4;

class Flow {
  public:
    explicit Flow(int nodes) : head_(nodes, -1), level_(nodes), at_(nodes) {}

    void edge(int from, int to, int64_t capacity) {
        arcs_.push_back({to, head_[from], capacity});
        head_[from] = int(arcs_.size()) - 1;
        arcs_.push_back({from, head_[to], 0});
        head_[to] = int(arcs_.size()) - 1;
    }

    // Stops once more than `enough` flows: the cut is then only known to be larger.
    int64_t run(int source, int sink, int64_t enough = UNBOUNDED) {
        int64_t total = 0;
        while (total <= enough && levels(source, sink)) {
            at_ = head_;
            while (total <= enough) {
                int64_t pushed = push(source, sink);
                if (!pushed) break;
                total += pushed;
            }
        }
        return total;
    }

    // Nodes that cannot reach the sink in the residual graph: the source's side of the largest minimum cut.
    std::vector<char> source_side(int sink) const {
        std::vector<char> reaches(head_.size(), 0);
        std::vector<int> todo{sink};
        reaches[sink] = 1;
        while (!todo.empty()) {
            int x = todo.back();
            todo.pop_back();
            for (int a = head_[x]; a >= 0; a = arcs_[a].next) {
                int y = arcs_[a].to;
                if (!reaches[y] && arcs_[a ^ 1].capacity > 0) reaches[y] = 1, todo.push_back(y);
            }
        }
        for (auto& r : reaches) r = !r;
        return reaches;
    }

    // Nodes that the source reaches in the residual graph: its side of the smallest minimum cut.
    std::vector<char> reached(int source) const {
        std::vector<char> seen(head_.size(), 0);
        std::vector<int> todo{source};
        seen[source] = 1;
        while (!todo.empty()) {
            int x = todo.back();
            todo.pop_back();
            for (int a = head_[x]; a >= 0; a = arcs_[a].next)
                if (arcs_[a].capacity > 0 && !seen[arcs_[a].to]) seen[arcs_[a].to] = 1, todo.push_back(arcs_[a].to);
        }
        return seen;
    }

  private:
    struct Arc {
        int to, next;
        int64_t capacity;
    };

    bool levels(int source, int sink) {
        std::fill(level_.begin(), level_.end(), -1);
        level_[source] = 0;
        queue_.assign(1, source);
        for (size_t i = 0; i < queue_.size(); ++i)
            for (int a = head_[queue_[i]]; a >= 0; a = arcs_[a].next)
                if (arcs_[a].capacity > 0 && level_[arcs_[a].to] < 0) {
                    level_[arcs_[a].to] = level_[queue_[i]] + 1;
                    queue_.push_back(arcs_[a].to);
                }
        return level_[sink] >= 0;
    }

    // One augmenting path; not recursive, since graphs can be thousands of nodes deep.
    int64_t push(int source, int sink) {
        path_.clear();
        int x = source;
        while (x != sink) {
            int& a = at_[x];
            while (a >= 0 && !(arcs_[a].capacity > 0 && level_[arcs_[a].to] == level_[x] + 1)) a = arcs_[a].next;
            if (a >= 0) {
                path_.push_back(a);
                x = arcs_[a].to;
            } else {
                if (path_.empty()) return 0;
                level_[x] = -1;
                x = arcs_[path_.back() ^ 1].to;
                path_.pop_back();
            }
        }
        int64_t least = UNBOUNDED;
        for (int a : path_) least = std::min(least, arcs_[a].capacity);
        for (int a : path_) arcs_[a].capacity -= least, arcs_[a ^ 1].capacity += least;
        return least;
    }

    std::vector<Arc> arcs_;
    std::vector<int> head_, level_, at_, queue_, path_;
};

}  // namespace effc_memory
