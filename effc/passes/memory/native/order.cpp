// The order of a graph's nodes with the least peak of live bytes, by exact search.
//
// A state is a set of nodes that have run (closed under predecessors); the bytes live in it, f, do not depend on how it
// was reached. Whether an order exists whose every step stays within a peak p is reachability among states. f is
// submodular: what a node adds can only shrink as more others have run. Hence, searching within p:
//
// - a ready node that fits and does not raise f runs at once;
// - a state Y reached from X with f(Y) <= f(X), where no part of the way has less than f(Y), can be passed through by
//   every order from X that stays within p: run the way to Y first, then the rest of that order. So all alternatives
//   below X are dropped (a commitment). The part of the way with least f is found by a minimum cut;
// - a state that failed once fails always (a hash table of 128-bit keys);
// - after a node that every other node precedes or follows there is one state only: a commitment as well.
//
// p starts at a lower bound: of each node's step in any order, the least bytes (a minimum cut that separates what must
// have run from what cannot have). A failed search proves the next larger step it saw as a bound; a successful one has an
// order; the two close in by halves. After p is found, nodes are moved towards the order given where that keeps p.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "flow.hpp"
#include "memory.h"

namespace effc_memory {
namespace {

using Clock = std::chrono::steady_clock;
using Key = std::pair<uint64_t, uint64_t>;

struct Use {
    int tensor;
    int64_t bytes;
};

struct Graph {
    int n = 0, m = 0;
    std::vector<std::vector<int>> before, after;  // nodes, distinct
    std::vector<std::vector<int>> makes, reads, over, readers;
    std::vector<int64_t> bytes, made, extra, absorbed;  // made: of all outputs; extra: workspace
    std::vector<int> producer;
    std::vector<char> stays;

    explicit Graph(const effc_mem_graph& in) : n(int(in.nodes)), m(int(in.tensors)) {
        before.resize(n), after.resize(n), makes.resize(n), reads.resize(n), over.resize(n), readers.resize(m);
        bytes.assign(in.bytes, in.bytes + m);
        stays.assign(in.stays, in.stays + m);
        producer.assign(in.producer, in.producer + m);
        extra.assign(in.workspace, in.workspace + n);
        absorbed.assign(in.absorbed, in.absorbed + n);
        made.assign(n, 0);
        for (int t = 0; t < m; ++t) {
            made[producer[t]] += bytes[t];
            makes[producer[t]].push_back(t);
            for (int64_t k = in.use_first[t]; k < in.use_first[t + 1]; ++k) {
                int v = int(in.use[k]);
                readers[t].push_back(v), reads[v].push_back(t), before[v].push_back(producer[t]);
            }
        }
        for (int v = 0; v < n; ++v) {
            for (int64_t k = in.after_first[v]; k < in.after_first[v + 1]; ++k) before[v].push_back(int(in.after[k]));
            for (int64_t k = in.over_first[v]; k < in.over_first[v + 1]; ++k) over[v].push_back(int(in.over[k]));
            std::sort(before[v].begin(), before[v].end());
            before[v].erase(std::unique(before[v].begin(), before[v].end()), before[v].end());
            for (int u : before[v]) after[u].push_back(v);
        }
    }
};

// Nodes that have run, with what follows from that; steps can be taken back.
class State {
  public:
    explicit State(const Graph& g) : g_(g), ran_(g.n, 0), waits_(g.n), left_(g.m) {
        for (int v = 0; v < g.n; ++v) waits_[v] = int(g.before[v].size());
        for (int t = 0; t < g.m; ++t) left_[t] = int(g.readers[t].size());
        for (int v = 0; v < g.n; ++v)
            if (!waits_[v]) ready_.push_back(v);
        at_.assign(g.n, -1);
        for (size_t i = 0; i < ready_.size(); ++i) at_[ready_[i]] = int(i);
        keys_.resize(g.n);
        uint64_t x = 0x243F6A8885A308D3ull;
        auto next = [&] {
            uint64_t z = (x += 0x9E3779B97F4A7C15ull);
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
            z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
            return z ^ (z >> 31);
        };
        for (auto& k : keys_) k.first = next(), k.second = next();
    }

    // Bytes during `v`'s step, if it ran next.
    int64_t step(int v) const {
        int64_t gain = 0;
        for (int t : g_.over[v])
            if (left_[t] == 1 && !g_.stays[t]) gain = std::max(gain, g_.bytes[t]);
        return live + g_.made[v] + g_.extra[v] - g_.absorbed[v] - gain;
    }

    // What its run adds to the live bytes.
    int64_t adds(int v) const {
        int64_t d = 0;
        for (int t : g_.makes[v])
            if (g_.stays[t] || !g_.readers[t].empty()) d += g_.bytes[t];
        for (int t : g_.reads[v])
            if (left_[t] == 1 && !g_.stays[t]) d -= g_.bytes[t];
        return d;
    }

    void run(int v) {
        live += adds(v);
        ran_[v] = 1;
        for (int t : g_.reads[v]) --left_[t];
        drop(v);
        for (int w : g_.after[v])
            if (!--waits_[w]) enter(w);
        key.first ^= keys_[v].first, key.second ^= keys_[v].second;
        sequence.push_back(v);
    }

    void back() {
        int v = sequence.back();
        sequence.pop_back();
        key.first ^= keys_[v].first, key.second ^= keys_[v].second;
        for (int w : g_.after[v])
            if (!waits_[w]++) drop(w);
        enter(v);
        for (int t : g_.reads[v]) ++left_[t];
        ran_[v] = 0;
        live -= adds(v);
    }

    // Takes back `v`, which need not be the last, but nothing that has run may depend on it.
    void take_back(int v) {
        std::swap(*std::find(sequence.rbegin(), sequence.rend(), v), sequence.back());
        back();
    }

    const std::vector<int>& ready() const { return ready_; }
    bool ran(int v) const { return ran_[v]; }
    const Graph& graph() const { return g_; }
    int left(int t) const { return left_[t]; }

    int64_t live = 0;
    Key key{1, 1};
    std::vector<int> sequence;

  private:
    void enter(int v) {
        at_[v] = int(ready_.size());
        ready_.push_back(v);
    }
    void drop(int v) {
        int last = ready_.back();
        ready_[at_[v]] = last, at_[last] = at_[v];
        ready_.pop_back(), at_[v] = -1;
    }

    const Graph& g_;
    std::vector<char> ran_;
    std::vector<int> waits_, left_, ready_, at_;
    std::vector<std::pair<uint64_t, uint64_t>> keys_;
};

// The same states, walked from the end: to run a node here is to take it back there. For graphs whose nodes overwrite
// nothing: with fewer nodes run, fewer operands die.
class Backwards {
  public:
    explicit Backwards(State&& end) : s_(std::move(end)), g_(s_.graph()), holds_(g_.n, 0), live(s_.live), key(s_.key) {
        for (int v = 0; v < g_.n; ++v)
            if (s_.ran(v))
                for (int u : g_.before[v]) ++holds_[u];
        for (int v = 0; v < g_.n; ++v)
            if (s_.ran(v) && !holds_[v]) ready_.push_back(v);
    }

    int64_t step(int v) const { return live + adds(v) + g_.made[v] + g_.extra[v] - g_.absorbed[v]; }

    int64_t adds(int v) const {
        int64_t d = 0;
        for (int t : g_.makes[v])
            if (g_.stays[t] || !g_.readers[t].empty()) d -= g_.bytes[t];
        for (int t : g_.reads[v])
            if (!s_.left(t) && !g_.stays[t]) d += g_.bytes[t];
        return d;
    }

    void run(int v) {
        s_.take_back(v);
        ready_.erase(std::find(ready_.begin(), ready_.end(), v));
        for (int u : g_.before[v])
            if (!--holds_[u]) ready_.push_back(u);
        sequence.push_back(v);
        live = s_.live, key = s_.key;
    }

    void back() {
        int v = sequence.back();
        sequence.pop_back();
        for (int u : g_.before[v])
            if (!holds_[u]++) ready_.erase(std::find(ready_.begin(), ready_.end(), u));
        ready_.push_back(v);
        s_.run(v);
        live = s_.live, key = s_.key;
    }

    const std::vector<int>& ready() const { return ready_; }
    int left(int t) const { return s_.left(t); }

  private:
    State s_;
    const Graph& g_;
    std::vector<int> holds_, ready_;

  public:
    int64_t live;
    Key key;
    std::vector<int> sequence;
};

class Failed {
  public:
    Failed() : slots_(1 << 12) {}
    void clear() {
        std::fill(slots_.begin(), slots_.end(), Key{0, 0});
        used_ = 0;
    }
    bool has(const Key& k) { return *find(k) == k; }
    void insert(const Key& k) {
        if (2 * ++used_ > slots_.size()) {
            std::vector<Key> old(slots_.size() * 2);
            old.swap(slots_);
            for (auto& o : old)
                if (o.first | o.second) *find(o) = o;
        }
        Key* at = find(k);
        if (*at == k) --used_;
        *at = k;
    }

  private:
    Key* find(const Key& k) {
        size_t i = k.first & (slots_.size() - 1);
        while ((slots_[i].first | slots_[i].second) && slots_[i] != k) i = (i + 1) & (slots_.size() - 1);
        return &slots_[i];
    }
    std::vector<Key> slots_;
    size_t used_ = 0;
};

class OrderPlanner {
  public:
    OrderPlanner(const effc_mem_graph& in, effc_mem_ordered& out) : in_(in), out_(out), g_(in) {}

    // False if the order given is none.
    bool run() {
        until_ = Clock::now() + std::chrono::microseconds(int64_t(in_.seconds * 1e6));
        if (!possible()) return false;
        best_.assign(in_.given, in_.given + g_.n);
        place_.resize(g_.n);
        for (int i = 0; i < g_.n; ++i) place_[best_[i]] = i;
        std::vector<int64_t> steps;
        int64_t high = peak(best_, &steps);
        out_.states = 0;
        for (const auto& o : g_.over) overwrites_ |= !o.empty();
        gates();
        int64_t low = simple_bound();
        if (low < high) improve_by_greedy(high);
        peak(best_, &steps);
        low = std::max(low, cuts(steps, low, high));
        out_.cut_bound = low;
        search(low, high);
        std::copy(best_.begin(), best_.end(), out_.loose);
        if (best_ != std::vector<int>(in_.given, in_.given + g_.n)) towards_given(high);
        out_.peak = high, out_.bound = std::min(low, high);
        out_.ended = low >= high ? EFFC_MEM_PROVEN : late_ ? EFFC_MEM_TIME : EFFC_MEM_BUDGET;
        std::copy(best_.begin(), best_.end(), out_.order);
        return true;
    }

  private:
    enum Result { FOUND, NONE, STOPPED };

    bool possible() const {
        std::vector<char> ran(g_.n, 0);
        for (int i = 0; i < g_.n; ++i) {
            int64_t v = in_.given[i];
            if (v < 0 || v >= g_.n || ran[v]) return false;
            for (int u : g_.before[v])
                if (!ran[u]) return false;
            ran[v] = 1;
        }
        return true;
    }

    int64_t peak(const std::vector<int>& order, std::vector<int64_t>* steps) const {
        State s(g_);
        int64_t most = 0;
        if (steps) steps->assign(g_.n, 0);
        for (int v : order) {
            int64_t b = s.step(v);
            if (steps) (*steps)[v] = b;
            most = std::max(most, b);
            s.run(v);
        }
        return most;
    }

    // Any node's own bytes.
    int64_t simple_bound() const {
        int64_t most = 0;
        for (int v = 0; v < g_.n; ++v) {
            int64_t own = g_.made[v] + g_.extra[v] - g_.absorbed[v] - overlay(v);
            for (int t : g_.reads[v]) own += g_.bytes[t];
            most = std::max(most, own);
        }
        return most;
    }

    int64_t overlay(int v) const {
        int64_t gain = 0;
        for (int t : g_.over[v])
            if (!g_.stays[t]) gain = std::max(gain, g_.bytes[t]);
        return gain;
    }

    // The largest over nodes of the least bytes of their step; only of nodes whose step in the best order is larger
    // than the bound so far, since no node's least is more than its step in any one order.
    int64_t cuts(const std::vector<int64_t>& steps, int64_t low, int64_t high) {
        std::vector<int> by_step(g_.n);
        std::iota(by_step.begin(), by_step.end(), 0);
        std::stable_sort(by_step.begin(), by_step.end(), [&](int a, int b) { return steps[a] > steps[b]; });
        for (int v : by_step) {
            if (steps[v] <= low || low >= high) break;
            if (Clock::now() > until_) {
                late_ = true;
                break;
            }
            low = std::max(low, least_step(v));
        }
        return low;
    }

    int64_t least_step(int v) const {
        // Nodes: graph's, then tensors', then source and sink.
        int source = g_.n + g_.m, sink = source + 1;
        Flow flow(sink + 1);
        std::vector<char> side(g_.n, 0);  // 1 must have run, 2 cannot
        reach(v, g_.before, side, 1), reach(v, g_.after, side, 2);
        side[v] = 2;
        auto name = [&](int u) { return side[u] == 1 ? source : side[u] == 2 ? sink : u; };
        int64_t fixed = 0;
        for (int t = 0; t < g_.m; ++t) {
            int p = name(g_.producer[t]);
            if (p == sink || (g_.readers[t].empty() && !g_.stays[t])) continue;
            bool live = g_.stays[t];
            for (int u : g_.readers[t]) live |= side[u] == 2;
            if (live) {
                if (p == source)
                    fixed += g_.bytes[t];
                else
                    flow.edge(p, sink, g_.bytes[t]);
                continue;
            }
            int mid = g_.n + t;
            flow.edge(p, mid, g_.bytes[t]);
            for (int u : g_.readers[t])
                if (name(u) != source) flow.edge(mid, name(u), UNBOUNDED);
        }
        for (int u = 0; u < g_.n; ++u)
            for (int w : g_.before[u])
                if (side[u] == 0 && side[w] == 0) flow.edge(u, w, UNBOUNDED);
        return fixed + flow.run(source, sink) + g_.made[v] + g_.extra[v] - g_.absorbed[v] - overlay(v);
    }

    static void reach(int v, const std::vector<std::vector<int>>& next, std::vector<char>& side, char mark) {
        std::vector<int> todo{v};
        while (!todo.empty()) {
            int x = todo.back();
            todo.pop_back();
            for (int y : next[x])
                if (side[y] != mark) side[y] = mark, todo.push_back(y);
        }
    }

    // Nodes that all others precede or follow: in any topological order, those that nothing passes by.
    void gates() {
        gate_.assign(g_.n, 0);
        std::vector<int> order = best_, at(g_.n);
        for (int i = 0; i < g_.n; ++i) at[order[i]] = i;
        // Of n nodes, at[v] must be ancestors and the rest descendants: counted with bit sets.
        size_t words = (g_.n + 63) / 64;
        std::vector<uint64_t> down(words * g_.n, 0);
        std::vector<int> ancestors(g_.n), descendants(g_.n);
        for (int i = 0; i < g_.n; ++i) {
            uint64_t* row = &down[words * order[i]];
            for (int u : g_.before[order[i]]) {
                for (size_t w = 0; w < words; ++w) row[w] |= down[words * u + w];
                row[u / 64] |= 1ull << (u % 64);
            }
            for (size_t w = 0; w < words; ++w) ancestors[order[i]] += __builtin_popcountll(row[w]);
            for (size_t w = 0; w < words; ++w)
                for (uint64_t bits = row[w]; bits; bits &= bits - 1) ++descendants[w * 64 + __builtin_ctzll(bits)];
        }
        for (int v = 0; v < g_.n; ++v) gate_[v] = ancestors[v] + descendants[v] == g_.n - 1;
    }

    // Always the ready node that adds least, or that has the lowest step: a first order to compare with.
    void improve_by_greedy(int64_t& high) {
        for (int kind = 0; kind < 2; ++kind) {
            State s(g_);
            int64_t most = 0;
            while (int(s.sequence.size()) < g_.n) {
                int pick = -1;
                int64_t least = 0;
                for (int v : s.ready()) {
                    int64_t cost = kind ? s.step(v) : s.adds(v);
                    if (kind && s.adds(v) <= 0 && s.step(v) <= most) cost = INT64_MIN;
                    if (pick < 0 || cost < least || (cost == least && place_[v] < place_[pick])) pick = v, least = cost;
                }
                most = std::max(most, s.step(pick));
                s.run(pick);
            }
            if (most < high) high = most, best_ = s.sequence;
        }
    }

    void search(int64_t& low, int64_t& high) {
        int64_t next = low, floor = low;  // floor: below it searches were given up or failed
        int64_t left = in_.budget;
        int tries = 0;
        while (low < high && floor < high && left > 0 && !late_) {
            Clock::time_point now = Clock::now();
            if (now > until_) {
                late_ = true;
                break;
            }
            // The proof gets most of the budget, later attempts at better orders a part of it.
            int64_t before = out_.states;
            std::vector<int> found;
            Result r = decide(next, floor == low ? left : std::max<int64_t>(left / 4, 1000), found);
            left -= out_.states - before;
            if (r == FOUND) {
                high = peak(found, nullptr);
                best_ = found;
            } else if (r == NONE) {
                if (floor == low) low = exceeded_;
                floor = std::max(floor, exceeded_);
            } else {
                floor = next + 1;
                left += in_.budget / 8;  // the outer loop still ends: every round halves the interval
                if (late_) break;
            }
            ++tries;
            next = tries < 3 ? floor : floor + (high - 1 - floor) / 2;
        }
        low = std::min(low, high);
    }

    struct Frame {
        size_t length;  // of the sequence
        int64_t live;
        std::vector<int> choices;
        size_t next = 0;
        std::vector<Key> fail_with;  // this state's key and those of states that fail if this one does
    };

    // Whether some order stays within p. Between gates each stretch of the best order is searched by itself, forwards
    // and backwards in turn with growing budgets: where results add up one way is short, where they are used up the
    // other.
    Result decide(int64_t p, int64_t budget, std::vector<int>& found) {
        found = best_;
        std::vector<int64_t> steps;
        peak(best_, &steps);
        for (int from = 0, to = 0; from < g_.n; from = to) {
            bool over = false;
            do over |= steps[found[to]] > p;
            while (!gate_[found[to++]] && to < g_.n);
            if (!over) continue;
            Result r = STOPPED;
            for (int64_t share = 2000; r == STOPPED && budget > 0 && !late_; share *= 4)
                for (bool forwards : {true, false}) {
                    if (!forwards && overwrites_) continue;
                    if (r != STOPPED || budget <= 0 || late_) break;
                    State s(g_);
                    for (int i = 0; i < (forwards ? from : to); ++i) s.run(found[i]);
                    int64_t before = out_.states;
                    std::vector<int> way;
                    if (forwards) {
                        r = stretch(s, p, std::min(share, budget), to, way);
                        if (r == FOUND) std::copy(way.begin() + from, way.end(), found.begin() + from);
                    } else {
                        Backwards w(std::move(s));
                        r = stretch(w, p, std::min(share, budget), to - from, way);
                        if (r == FOUND) std::copy(way.rbegin(), way.rend(), found.begin() + from);
                    }
                    budget -= out_.states - before + 1;
                }
            if (r != FOUND) return r;
        }
        return FOUND;
    }

    // From where `s` is until `length` nodes stand in its sequence.
    template <class S>
    Result stretch(S& s, int64_t p, int64_t budget, int length, std::vector<int>& found) {
        failed_.clear();
        exceeded_ = UNBOUNDED;
        std::vector<Frame> frames;
        int64_t spent = 0;
        settle(s, p, s.sequence.size(), length, frames);
        if (int(s.sequence.size()) == length) return found = s.sequence, FOUND;
        open(s, p, frames);
        while (!frames.empty()) {
            Frame& f = frames.back();
            while (s.sequence.size() > f.length) s.back();
            if (f.next == f.choices.size()) {
                for (const Key& k : f.fail_with) failed_.insert(k);
                frames.pop_back();
                continue;
            }
            if (spent >= budget) return STOPPED;
            if ((spent & 255) == 255 && Clock::now() > until_) return late_ = true, STOPPED;
            ++spent, ++out_.states;
            size_t before = s.sequence.size();
            s.run(f.choices[f.next++]);
            settle(s, p, before, length, frames);
            if (int(s.sequence.size()) == length) return found = s.sequence, FOUND;
            std::vector<Key> dropped;
            commit(s, p, length, frames, dropped);
            if (int(s.sequence.size()) == length) return found = s.sequence, FOUND;
            if (failed_.has(s.key)) {
                for (const Key& k : dropped) failed_.insert(k);
                continue;
            }
            open(s, p, frames);
            frames.back().fail_with.insert(frames.back().fail_with.end(), dropped.begin(), dropped.end());
        }
        return NONE;
    }

    // Forced steps. Past a gate nothing else can have been done, so no alternative is kept.
    template <class S>
    void settle(S& s, int64_t p, size_t from, int length, std::vector<Frame>& frames) {
        for (bool again = true; again && int(s.sequence.size()) < length;) {
            again = false;
            int pick = -1;
            for (int v : s.ready())
                if ((pick < 0 || place_[v] < place_[pick]) && s.adds(v) <= 0 && s.step(v) <= p) pick = v;
            if (pick >= 0) s.run(pick), again = true;
        }
        for (size_t i = s.sequence.size(); i-- > from;)
            if (gate_[s.sequence[i]]) {
                frames.clear();
                break;
            }
    }

    template <class S>
    void open(S& s, int64_t p, std::vector<Frame>& frames) {
        Frame f{s.sequence.size(), s.live, {}, 0, {s.key}};
        for (int v : s.ready()) {
            int64_t b = s.step(v);
            if (b <= p)
                f.choices.push_back(v);
            else
                exceeded_ = std::min(exceeded_, b);
        }
        std::sort(f.choices.begin(), f.choices.end(), [&](int a, int b) {
            int64_t x = s.adds(a), y = s.adds(b);
            return x != y ? x < y : place_[a] < place_[b];
        });
        frames.push_back(std::move(f));
    }

    // From the earliest state on the stack with as many live bytes as now, or more, only one way is kept. The states it
    // drops fail if the one it ends in does; not before, since that one need not contain them.
    template <class S>
    void commit(S& s, int64_t p, int length, std::vector<Frame>& frames, std::vector<Key>& dropped) {
        for (size_t i = 0; i < frames.size(); ++i) {
            if (frames[i].live < s.live) continue;
            size_t from = frames[i].length;
            std::vector<int> way(s.sequence.begin() + from, s.sequence.end());
            if (way.size() > 1) {
                std::vector<int> part = least_part(s, way);
                if (part.size() < way.size()) {
                    while (s.sequence.size() > from) s.back();
                    size_t k = 0;
                    for (; k < part.size() && s.step(part[k]) <= p; ++k) s.run(part[k]);
                    if (k < part.size()) {  // possible only where results overwrite operands
                        exceeded_ = std::min(exceeded_, s.step(part[k]));
                        while (s.sequence.size() > from) s.back();
                        for (int v : way) s.run(v);
                        continue;
                    }
                    settle(s, p, from, length, frames);
                }
            }
            while (frames.size() > i) {
                dropped.insert(dropped.end(), frames.back().fail_with.begin(), frames.back().fail_with.end());
                frames.pop_back();
            }
            return;
        }
    }

    // Of the nodes last run, the largest subset (with its predecessors) after which least is live, in their order.
    std::vector<int> least_part(State& s, const std::vector<int>& way) { return cut_way(s, way, true); }

    // Backwards: what is kept of the nodes taken back is the smallest such subset.
    std::vector<int> least_part(Backwards& s, const std::vector<int>& way) {
        for (size_t i = 0; i < way.size(); ++i) s.back();
        std::vector<int> kept = cut_way(s, way, false), part;
        for (int v : way) s.run(v);
        for (int v : way)
            if (std::find(kept.begin(), kept.end(), v) == kept.end()) part.push_back(v);
        return part;
    }

    template <class S>
    std::vector<int> cut_way(const S& s, const std::vector<int>& way, bool largest) {
        if (local_.empty()) local_.assign(g_.n, -1), local_tensor_.assign(g_.m, -1);
        int k = int(way.size());
        for (int i = 0; i < k; ++i) local_[way[i]] = i;
        std::vector<int> tensors;
        for (int v : way) {
            for (int t : g_.makes[v])
                if (local_tensor_[t] < 0) local_tensor_[t] = int(tensors.size()), tensors.push_back(t);
            for (int t : g_.reads[v])
                if (local_tensor_[t] < 0) local_tensor_[t] = int(tensors.size()), tensors.push_back(t);
        }
        int source = k + int(tensors.size()), sink = source + 1;
        Flow flow(sink + 1);
        for (int t : tensors) {
            int made = local_[g_.producer[t]], mid = k + local_tensor_[t];
            bool freed = s.left(t) == 0 && !g_.stays[t];
            if (made < 0 && !freed) continue;
            if (made >= 0 && g_.readers[t].empty() && !g_.stays[t]) continue;
            if (made >= 0 && !freed) {
                flow.edge(made, sink, g_.bytes[t]);
                continue;
            }
            flow.edge(made >= 0 ? made : source, mid, g_.bytes[t]);
            for (int u : g_.readers[t])
                if (local_[u] >= 0) flow.edge(mid, local_[u], UNBOUNDED);
        }
        for (int v : way)
            for (int u : g_.before[v])
                if (local_[u] >= 0) flow.edge(local_[v], local_[u], UNBOUNDED);
        flow.run(source, sink);
        std::vector<char> in = largest ? flow.source_side(sink) : flow.reached(source);
        std::vector<int> part;
        for (int i = 0; i < k; ++i)
            if (in[i]) part.push_back(way[i]);
        for (int v : way) local_[v] = -1;
        for (int t : tensors) local_tensor_[t] = -1;
        return part;
    }

    // Of orders with this peak, one closer to the given: at each place the earliest node of the given order that can
    // stand there with the rest as it is.
    void towards_given(int64_t p) {
        std::vector<int> rest = best_, trial;
        State s(g_);
        for (int i = 0; i < g_.n; ++i) {
            std::vector<int> ready = s.ready();
            std::sort(ready.begin(), ready.end(), [&](int a, int b) { return place_[a] < place_[b]; });
            for (int v : ready) {
                if (v == rest[i]) break;
                if (s.step(v) > p) continue;
                trial.assign(1, v);
                for (int k = i; k < g_.n; ++k)
                    if (rest[k] != v) trial.push_back(rest[k]);
                // Past v's old place nothing has changed.
                size_t base = s.sequence.size(), old = std::find(rest.begin() + i, rest.end(), v) - rest.begin() - i;
                bool fits = true;
                for (size_t k = 0; fits && k <= old; ++k) {
                    fits = s.step(trial[k]) <= p;
                    if (fits) s.run(trial[k]);
                }
                while (s.sequence.size() > base) s.back();
                if (fits) {
                    std::copy(trial.begin(), trial.end(), rest.begin() + i);
                    break;
                }
            }
            s.run(rest[i]);
        }
        best_ = rest;
    }

    const effc_mem_graph& in_;
    effc_mem_ordered& out_;
    Graph g_;
    std::vector<int> best_, place_, local_, local_tensor_;
    std::vector<char> gate_;
    Failed failed_;
    Clock::time_point until_;
    int64_t exceeded_ = 0;
    bool late_ = false, overwrites_ = false;
};

}  // namespace
}  // namespace effc_memory

extern "C" EFFC_MEM_API int effc_mem_order(const effc_mem_graph* in, effc_mem_ordered* out) {
    try {
        return effc_memory::OrderPlanner(*in, *out).run() ? 0 : 2;
    } catch (...) {
        return 1;  // no memory left
    }
}
