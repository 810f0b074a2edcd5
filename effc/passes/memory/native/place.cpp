// Offsets for buffers with known lifetimes (offline dynamic storage allocation), by search.
//
// After Moffitt, "MiniMalloc: A Lightweight Memory Allocator for Hardware-Accelerated Machine Learning" (2023). A
// solution in which no buffer can be moved down has each buffer on the floor or on another one, and can be built from
// the bottom up: offsets never decrease. The search builds only such solutions, and of those with the same buffers at
// the same offset only one. It looks at time in sections, within which the same buffers are live:
//
// - a section whose lowest possible offset and the bytes still to come exceed the capacity fails (space below the
//   lowest offset that any remaining buffer can take there is lost);
// - a buffer is not placed where another remaining one would fit entirely below it: the two could be swapped in order
//   (dominance), so every remaining buffer's lowest top limits the next offset.
//
// Several static orders break ties and are tried in turn with growing numbers of nodes, and the end is by work done, not by the clock, so results are reproducible.
// A buffer may be a stack of boxes with fixed relative offsets (a concatenation whose parts are made in place); for
// these the search is sound but may miss solutions that put something into a hollow. Pinned buffers are obstacles.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

#include "memory.h"

namespace effc_memory {
namespace {

struct Part {
    int from, to;  // sections, half open
    int64_t lo, hi;  // bytes, relative to the buffer's offset
};

struct Item {
    int id;  // in the caller's arrays
    std::vector<Part> parts;
    int64_t height, align, bytes_by_time = 0;
    int64_t pinned;  // offset, or -1
    int from, to;
    int64_t thickest = 0;  // the most bytes in any of its sections
};

struct Near {
    int item;
    int64_t above, below;  // its offset, if above this one's, is so much higher; if below, so much lower
};

struct Zone {  // an obstacle seen from one item: offsets in (lo, hi) collide
    int64_t lo, hi;
};

inline int64_t align_up(int64_t x, int64_t a) { return (x + a - 1) / a * a; }

using Clock = std::chrono::steady_clock;

struct Problem {
    std::vector<Item> items;
    std::vector<std::vector<Zone>> zones;  // pinned ones, sorted by lo
    std::vector<std::vector<Near>> near;
    std::vector<int64_t> length;  // of sections
    std::vector<std::vector<std::pair<int64_t, int64_t>>> pinned;  // by section
};

// Forbidden offsets of `b` against `a` at offset 0: open intervals.
template <class F>
void collisions(const Item& a, const Item& b, F&& found) {
    for (const Part& p : a.parts)
        for (const Part& q : b.parts)
            if (p.from < q.to && q.from < p.to) found(p.lo - q.hi, p.hi - q.lo);
}

// Lowest offset at or above `at` that is aligned and outside all zones.
int64_t clear(const std::vector<Zone>& zones, int64_t at, int64_t align) {
    at = align_up(at, align);
    for (bool moved = true; moved;) {
        moved = false;
        for (const Zone& z : zones)
            if (at > z.lo && at < z.hi) at = align_up(z.hi, align), moved = true;
    }
    return at;
}

class Search {
  public:
    enum Result { FOUND, NONE, STOPPED };

    // `members`: the movable items of one component, in the order that breaks ties.
    Search(const Problem& p, const std::vector<int>& members, int64_t capacity)
        : p_(p), capacity_(capacity), n_(int(members.size())), items_(members) {
        std::vector<int> rank(p.items.size(), -1);
        for (int r = 0; r < n_; ++r) rank[members[r]] = r;
        int lo = INT32_MAX, hi = 0;
        for (int m : members) lo = std::min(lo, p.items[m].from), hi = std::max(hi, p.items[m].to);
        first_ = lo;
        sections_ = hi - lo;
        rest_.assign(sections_, 0);
        floor_.assign(sections_, 0);
        inside_.resize(sections_);
        align_.resize(n_), height_.resize(n_), least_.resize(n_), near_.resize(n_), from_.resize(n_), to_.resize(n_);
        for (int s = 0; s < sections_; ++s) pinned_any_ |= !p.pinned[lo + s].empty();
        for (int r = 0; r < n_; ++r) {
            const Item& b = p.items[members[r]];
            align_[r] = b.align, height_[r] = b.height, from_[r] = b.from, to_[r] = b.to;
            least_[r] = clear(zones(r), 0, b.align);
            for (const Part& q : b.parts)
                for (int s = q.from - lo; s < q.to - lo; ++s) rest_[s] += q.hi - q.lo, inside_[s].push_back({r, q.lo});
            for (const Near& x : p.near[members[r]])
                if (rank[x.item] >= 0) near_[r].push_back({rank[x.item], x.above, x.below});
        }
        slot_ = least_;
        twin_.assign(n_, -1);
        for (int r = 1; r < n_; ++r)
            for (int q = r - 1; q >= 0; --q)
                if (same(p.items[members[r]], p.items[members[q]])) {
                    twin_[r] = q;
                    break;
                }
        placed_.assign(n_, 0);
        mark_.assign(sections_, 0);
    }

    // At most so many nodes, and so much work: visits to buffers and sections.
    Result run(int64_t nodes, int64_t work, Clock::time_point until) {
        nodes_ = work_ = 0, most_nodes_ = nodes, most_work_ = work, until_ = until;
        for (int r = 0; r < n_; ++r)
            if (least_[r] + height_[r] > capacity_) return NONE;
        for (int s = 0; s < sections_; ++s)
            if (!refloor(s)) return NONE;
        std::vector<int> all(n_);
        std::iota(all.begin(), all.end(), 0);
        std::stable_sort(all.begin(), all.end(), [&](int a, int b) { return from_[a] < from_[b]; });
        return solve(all);
    }

    int64_t nodes() const { return nodes_; }
    int64_t work() const { return work_; }

    template <class F>
    void result(F&& set) const {
        for (int r = 0; r < n_; ++r) set(items_[r], slot_[r]);
    }

  private:
    enum What : int { LEAST, SLOT, FLOOR, PLACED };

    struct Change {
        What what;
        int at;
        int64_t before;
    };

    static bool same(const Item& a, const Item& b) {
        if (a.align != b.align || a.parts.size() != 1 || b.parts.size() != 1) return false;
        const Part &x = a.parts[0], &y = b.parts[0];
        return x.from == y.from && x.to == y.to && x.lo == y.lo && x.hi == y.hi;
    }

    const std::vector<Zone>& zones(int r) const { return p_.zones[items_[r]]; }

    // The lowest offset at which anything can still come to lie in the section; false if too little is left above it.
    bool refloor(int s) {
        if (!rest_[s]) return true;
        work_ += int64_t(inside_[s].size());
        int64_t low = INT64_MAX;
        for (const auto& x : inside_[s])
            if (!placed_[x.first]) low = std::min(low, least_[x.first] + x.second);
        if (low != floor_[s]) {
            trail_.push_back({FLOOR, s, floor_[s]});
            floor_[s] = low;
        }
        return low + rest_[s] + above(s, low) <= capacity_;
    }

    int64_t above(int s, int64_t low) const {
        if (!pinned_any_) return 0;
        int64_t bytes = 0;
        for (const auto& x : p_.pinned[first_ + s]) bytes += std::max<int64_t>(0, x.second - std::max(x.first, low));
        return bytes;
    }

    void touch(int r) {
        for (const Part& q : p_.items[items_[r]].parts)
            for (int s = q.from - first_; s < q.to - first_; ++s)
                if (mark_[s] != stamp_) mark_[s] = stamp_, changed_.push_back(s);
    }

    bool raise(int r, int64_t to) {
        if (to <= least_[r]) return true;
        trail_.push_back({LEAST, r, least_[r]});
        least_[r] = to;
        touch(r);
        return to + height_[r] <= capacity_;
    }

    bool refloor() {
        bool fits = true;
        for (size_t i = 0; fits && i < changed_.size(); ++i) fits = refloor(changed_[i]);
        changed_.clear();
        ++stamp_;
        return fits;
    }

    // `b` into its slot.
    bool put(int b) {
        trail_.push_back({PLACED, b, 0});
        placed_[b] = 1;
        int64_t at = slot_[b];
        for (const Part& q : p_.items[items_[b]].parts)
            for (int s = q.from - first_; s < q.to - first_; ++s) rest_[s] -= q.hi - q.lo;
        touch(b);
        bool fits = true;
        work_ += int64_t(near_[b].size());
        for (const Near& x : near_[b]) {
            int j = x.item;
            if (placed_[j] || at + x.above <= slot_[j]) continue;
            trail_.push_back({SLOT, j, slot_[j]});
            slot_[j] = clear(zones(j), at + x.above, align_[j]);
            fits &= raise(j, slot_[j]);
        }
        return refloor() && fits;
    }

    // What is kept out of its slot lies on something that takes part of that slot and is still to come.
    bool propagate(const std::vector<int>& members) {
        for (bool again = true; again;) {
            again = false;
            work_ += int64_t(members.size());
            for (int j : members) {
                if (twin_[j] >= 0 && !placed_[twin_[j]] && least_[j] < least_[twin_[j]] + height_[j]) {
                    if (!raise(j, least_[twin_[j]] + height_[j])) return changed_.clear(), ++stamp_, false;
                    again = true;
                }
                if (least_[j] == slot_[j]) continue;
                work_ += int64_t(near_[j].size());
                int64_t low = INT64_MAX, top = slot_[j] + height_[j];
                for (const Near& x : near_[j])
                    if (!placed_[x.item] && least_[x.item] < top) low = std::min(low, least_[x.item] + x.below);
                if (low == INT64_MAX) return changed_.clear(), ++stamp_, false;
                low = clear(zones(j), low, align_[j]);
                if (low <= least_[j]) continue;
                again = true;
                if (!raise(j, low)) return changed_.clear(), ++stamp_, false;
            }
            if (!refloor()) return false;
        }
        return true;
    }

    void undo(size_t to) {
        for (; trail_.size() > to; trail_.pop_back()) {
            const Change& c = trail_.back();
            if (c.what == LEAST)
                least_[c.at] = c.before;
            else if (c.what == SLOT)
                slot_[c.at] = c.before;
            else if (c.what == FLOOR)
                floor_[c.at] = c.before;
            else {
                placed_[c.at] = 0;
                for (const Part& q : p_.items[items_[c.at]].parts)
                    for (int s = q.from - first_; s < q.to - first_; ++s) rest_[s] += q.hi - q.lo;
            }
        }
    }

    // Places `members` (by their first section; all connected through time). What was placed stays so only if that
    // succeeds.
    Result solve(const std::vector<int>& members) {
        // Alone: it can take its slot, which nothing is in the way of.
        if (members.size() == 1) {
            trail_.push_back({PLACED, members[0], 0});
            placed_[members[0]] = 1;
            for (const Part& q : p_.items[items_[members[0]]].parts)
                for (int s = q.from - first_; s < q.to - first_; ++s) rest_[s] -= q.hi - q.lo;
            return FOUND;
        }
        size_t entered = trail_.size();
        std::vector<std::vector<int>> groups;
        while (true) {
            if (!propagate(members)) return undo(entered), NONE;
            int b = -1;
            int64_t dead = INT64_MAX;
            for (int r : members) {
                dead = std::min(dead, slot_[r] + height_[r]);
                if (twin_[r] >= 0 && !placed_[twin_[r]]) continue;
                if (b < 0 || least_[r] < least_[b] || (least_[r] == least_[b] && r < b)) b = r;
            }
            if (least_[b] != slot_[b] || dead <= least_[b]) return undo(entered), NONE;
            if (nodes_ >= most_nodes_ || work_ >= most_work_) return STOPPED;
            if ((nodes_ & 255) == 255 && Clock::now() > until_) return STOPPED;
            ++nodes_;
            size_t before = trail_.size();
            if (put(b)) {
                Result r = FOUND;
                split(members, b, groups);
                for (auto& g : groups)
                    if ((r = solve(g)) != FOUND) break;
                if (r != NONE) return r;
            }
            undo(before);
            // Not in its slot.
            if (!raise(b, least_[b] + 1)) {
                changed_.clear(), ++stamp_;
                return undo(entered), NONE;
            }
        }
    }

    // `members` without `b`, cut where none is live on both sides; the smallest group first.
    void split(const std::vector<int>& members, int b, std::vector<std::vector<int>>& groups) {
        groups.clear();
        int end = -1;
        for (int r : members) {
            if (r == b) continue;
            if (from_[r] >= end) groups.emplace_back();
            groups.back().push_back(r);
            end = std::max(end, to_[r]);
        }
        if (groups.size() > 1)
            std::stable_sort(groups.begin(), groups.end(), [](auto& x, auto& y) { return x.size() < y.size(); });
    }

    const Problem& p_;
    int64_t capacity_;
    int n_, first_, sections_;
    std::vector<int> items_, twin_, from_, to_;
    // slot: the lowest offset above all that is placed; least: the lowest that is not ruled out.
    std::vector<int64_t> rest_, floor_, align_, height_, least_, slot_;
    std::vector<std::vector<std::pair<int, int64_t>>> inside_;
    std::vector<std::vector<Near>> near_;
    std::vector<char> placed_;
    std::vector<Change> trail_;
    std::vector<int> changed_;
    std::vector<int64_t> mark_;
    int64_t stamp_ = 1, nodes_ = 0, work_ = 0, most_nodes_ = 0, most_work_ = 0;
    Clock::time_point until_;
    bool pinned_any_ = false;
};

// One by one, each in the lowest or the tightest gap.
int64_t greedy(const Problem& p, const std::vector<int>& order, bool tight, std::vector<int64_t>& offset) {
    std::vector<char> placed(p.items.size(), 0);
    std::vector<Zone> taken;
    int64_t total = 0;
    for (size_t i = 0; i < p.items.size(); ++i)
        if (p.items[i].pinned >= 0) {
            placed[i] = 1, offset[i] = p.items[i].pinned;
            total = std::max(total, offset[i] + p.items[i].height);
        }
    for (int b : order) {
        if (placed[b]) continue;
        const Item& item = p.items[b];
        taken = p.zones[b];
        for (const Near& x : p.near[b])
            if (placed[x.item] && p.items[x.item].pinned < 0)
                collisions(p.items[x.item], item,
                           [&](int64_t lo, int64_t hi) { taken.push_back({offset[x.item] + lo, offset[x.item] + hi}); });
        std::sort(taken.begin(), taken.end(), [](const Zone& a, const Zone& b) { return a.lo < b.lo; });
        int64_t at = 0, best = -1, room = INT64_MAX;
        for (const Zone& z : taken) {
            if (z.lo >= at) {  // offsets at..z.lo are free
                if (!tight) break;
                if (z.lo - at < room) room = z.lo - at, best = at;
            }
            if (z.hi > at) at = align_up(z.hi, item.align);
        }
        offset[b] = best >= 0 ? best : at;
        placed[b] = 1;
        total = std::max(total, offset[b] + item.height);
    }
    return total;
}

class PlacePlanner {
  public:
    PlacePlanner(const effc_mem_placement& in, effc_mem_placed& out) : in_(in), out_(out) {}

    void run() {
        started_ = Clock::now();
        until_ = started_ + std::chrono::microseconds(int64_t(in_.seconds * 1e6));
        build();
        std::vector<int64_t> offset(p_.items.size(), 0);
        best_.assign(p_.items.size(), 0);
        out_.total = INT64_MAX;
        portfolio(offset);
        out_.bound = in_.bound;
        if (out_.total > in_.bound && in_.budget > 0) descend();
        out_.ended = out_.total <= out_.bound ? EFFC_MEM_PROVEN : out_of_time_ ? EFFC_MEM_TIME : EFFC_MEM_BUDGET;
        for (size_t i = 0; i < p_.items.size(); ++i) out_.offset[p_.items[i].id] = best_[i];
    }

  private:
    void build() {
        std::vector<int64_t> times;
        for (int64_t k = 0; k < in_.part_first[in_.buffers]; ++k)
            times.push_back(in_.part_start[k]), times.push_back(in_.part_stop[k] + 1);
        std::sort(times.begin(), times.end());
        times.erase(std::unique(times.begin(), times.end()), times.end());
        auto section = [&](int64_t t) { return int(std::lower_bound(times.begin(), times.end(), t) - times.begin()); };
        for (size_t s = 0; s + 1 < times.size(); ++s) p_.length.push_back(times[s + 1] - times[s]);
        p_.pinned.resize(p_.length.size());
        for (int64_t i = 0; i < in_.buffers; ++i) {
            Item item{};
            item.id = int(i), item.align = in_.align[i], item.pinned = in_.pinned[i];
            item.from = INT32_MAX;
            for (int64_t k = in_.part_first[i]; k < in_.part_first[i + 1]; ++k) {
                Part q{section(in_.part_start[k]), section(in_.part_stop[k] + 1), in_.part_lo[k], in_.part_hi[k]};
                if (q.hi <= q.lo || q.to <= q.from) continue;
                item.parts.push_back(q);
                item.from = std::min(item.from, q.from), item.to = std::max(item.to, q.to);
                item.height = std::max(item.height, q.hi);
                item.thickest = std::max(item.thickest, q.hi - q.lo);
                item.bytes_by_time += (q.hi - q.lo) * (in_.part_stop[k] + 1 - in_.part_start[k]);
            }
            if (item.parts.empty()) {
                out_.offset[i] = std::max<int64_t>(0, item.pinned);
                continue;
            }
            if (item.pinned >= 0)
                for (const Part& q : item.parts)
                    for (int s = q.from; s < q.to; ++s)
                        p_.pinned[s].push_back({item.pinned + q.lo, item.pinned + q.hi});
            p_.items.push_back(std::move(item));
        }
        size_t n = p_.items.size();
        p_.near.resize(n), p_.zones.resize(n);
        std::vector<int> by_start(n);
        std::iota(by_start.begin(), by_start.end(), 0);
        std::stable_sort(by_start.begin(), by_start.end(), [&](int a, int b) { return p_.items[a].from < p_.items[b].from; });
        for (size_t x = 0; x < n; ++x)
            for (size_t y = x + 1; y < n; ++y) {
                int a = by_start[x], b = by_start[y];
                if (p_.items[b].from >= p_.items[a].to) break;
                meet(a, b), meet(b, a);
            }
        for (auto& z : p_.zones) std::sort(z.begin(), z.end(), [](const Zone& a, const Zone& b) { return a.lo < b.lo; });
        load_.assign(p_.length.size(), 0);
        for (const Item& i : p_.items)
            for (const Part& q : i.parts)
                for (int s = q.from; s < q.to; ++s) load_[s] += q.hi - q.lo;
    }

    void meet(int a, int b) {
        int64_t above = INT64_MIN, below = INT64_MIN;
        const Item& x = p_.items[a];
        collisions(x, p_.items[b], [&](int64_t lo, int64_t hi) {
            above = std::max(above, hi), below = std::max(below, -lo);
            if (x.pinned >= 0) p_.zones[b].push_back({x.pinned + lo, x.pinned + hi});
        });
        if (above > INT64_MIN) p_.near[a].push_back({b, above, below});
    }

    int64_t busiest(int b) const {
        int64_t most = 0;
        for (const Part& q : p_.items[b].parts)
            for (int s = q.from; s < q.to; ++s) most = std::max(most, load_[s]);
        return most;
    }

    int64_t width(int b) const {
        int64_t w = 0;
        for (int s = p_.items[b].from; s < p_.items[b].to; ++s) w += p_.length[s];
        return w;
    }

    // Total bytes of its busiest section, width, area, size ("z"): items sorted by these keys, largest first.
    std::vector<int> sorted(const char* keys) const {
        std::vector<int> order(p_.items.size());
        std::iota(order.begin(), order.end(), 0);
        std::vector<std::vector<int64_t>> key(order.size());
        for (int b : order)
            for (const char* k = keys; *k; ++k)
                key[b].push_back(*k == 't'   ? -busiest(b)
                                 : *k == 'w' ? -width(b)
                                 : *k == 'a' ? -p_.items[b].bytes_by_time
                                 : *k == 'z' ? -p_.items[b].height
                                             : int64_t(p_.items[b].from));
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return key[a] < key[b]; });
        return order;
    }

    static int64_t luby(uint64_t k) {  // from k = 0: 1 1 2 1 1 2 4 ...
        uint64_t size = 1;
        int power = 0;
        for (; size < k + 1; size = 2 * size + 1) ++power;
        for (; size - 1 != k; k %= size) size = (size - 1) / 2, --power;
        return int64_t(1) << power;
    }

    // The members in the order of the keys; in later rounds each is moved by up to a quarter of them, by a fixed sequence.
    std::vector<int> disturbed(const char* keys, const std::vector<int>& group, uint64_t round) const {
        std::vector<char> in(p_.items.size(), 0);
        for (int b : group) in[b] = 1;
        std::vector<int> members;
        for (int b : sorted(keys))
            if (in[b]) members.push_back(b);
        if (!round) return members;
        std::vector<std::pair<int64_t, int>> keyed;
        uint64_t x = round * 0x9E3779B97F4A7C15ull;
        for (size_t i = 0; i < members.size(); ++i) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            keyed.push_back({int64_t(i) + int64_t(x % (members.size() / 4 + 2)), members[i]});
        }
        std::stable_sort(keyed.begin(), keyed.end());
        for (size_t i = 0; i < members.size(); ++i) members[i] = keyed[i].second;
        return members;
    }

    void keep(const std::vector<int64_t>& offset, int64_t total, int how) {
        if (total >= out_.total) return;
        out_.total = total, out_.how = how, best_ = offset;
    }

    void portfolio(std::vector<int64_t>& offset) {
        std::vector<int> base;
        int how = 0;
        for (const char* keys : {"zs", "as", "wz", "sz", "tz", "wat"}) {
            std::vector<int> order = sorted(keys);
            for (bool tight : {false, true}) {
                int64_t total = greedy(p_, order, tight, offset);
                if (total < out_.total) base = order;
                keep(offset, total, how++);
                if (out_.total <= in_.bound) return;
            }
        }
        // What reaches the top is placed first.
        std::vector<int64_t> current = best_;
        int64_t reached = out_.total;
        for (int k = 0; k < 24; ++k) {
            std::vector<int> moved;
            for (int top = 1; top >= 0; --top)
                for (int b : base)
                    if ((current[b] + p_.items[b].height == reached) == bool(top)) moved.push_back(b);
            if (moved == base) break;
            base = moved;
            reached = greedy(p_, base, false, offset);
            keep(offset, reached, 50);
            current = offset;
            if (out_.total <= in_.bound || reached > out_.total / 4 * 5) return;
        }
    }

    // Groups of items that are live together, in time; each is searched alone.
    std::vector<std::vector<int>> components() const {
        std::vector<int> order(p_.items.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return p_.items[a].from < p_.items[b].from; });
        std::vector<std::vector<int>> out;
        int end = -1;
        for (int b : order) {
            if (p_.items[b].pinned >= 0) continue;
            if (p_.items[b].from >= end) out.emplace_back();
            out.back().push_back(b);
            end = std::max(end, p_.items[b].to);
        }
        return out;
    }

    // Whether everything fits into `capacity`: FOUND leaves the offsets in `offset`.
    Search::Result solve(int64_t capacity, int64_t budget, std::vector<int64_t>& offset) {
        constexpr int ORDERS = 3, SHARE = 5000;
        static const char* const orders[ORDERS] = {"taw", "wat", "twa"};
        for (const Item& i : p_.items)
            if (i.pinned >= 0 && i.pinned + i.height > capacity) return Search::NONE;
        Search::Result all = Search::FOUND;
        for (const auto& group : components()) {
            Search::Result r = Search::STOPPED;
            // Run times vary by orders of magnitude with the order (heavy tails): many short tries in the manner of Luby
            // et al. (1993), each with a static order, from the second round on with its keys disturbed.
            int64_t left = budget;
            for (uint64_t k = 0; r == Search::STOPPED && left > 0; ++k) {
                std::vector<int> members = disturbed(orders[k % ORDERS], group, k / ORDERS);
                Search search(p_, members, capacity);
                r = search.run(SHARE * luby(k), left, until_);
                left -= search.work() + int64_t(group.size());
                out_.nodes += search.nodes();
                if (r == Search::FOUND) search.result([&](int b, int64_t at) { offset[b] = at; });
                if (r == Search::STOPPED && Clock::now() > until_) {
                    out_of_time_ = true;
                    return r;
                }
            }
            if (r == Search::NONE && whole(group)) return r;
            if (r != Search::FOUND) all = Search::STOPPED;
            if (all != Search::FOUND) return all;
        }
        return all;
    }

    // Only for plain boxes is a search that ends without a solution a proof.
    bool whole(const std::vector<int>& group) const {
        for (int b : group)
            if (p_.items[b].parts.size() != 1 || p_.items[b].parts[0].lo != 0) return false;
        return true;
    }

    // All offsets of a lowest placement, and so its arena, are multiples of this.
    int64_t unit() const {
        int64_t g = 0;
        for (const Item& i : p_.items) {
            g = std::gcd(g, i.align);
            if (i.pinned >= 0) g = std::gcd(g, i.pinned);
            for (const Part& q : i.parts) g = std::gcd(std::gcd(g, q.lo), q.hi);
        }
        return std::max<int64_t>(g, 1);
    }

    // The bound first; if that is not reached within the budget, capacities between it and the best, by halves.
    void descend() {
        std::vector<int64_t> offset(p_.items.size(), 0);
        for (size_t i = 0; i < p_.items.size(); ++i) offset[i] = std::max<int64_t>(0, p_.items[i].pinned);
        int64_t unit = this->unit(), budget = in_.budget;
        int64_t low = align_up(in_.bound, unit);  // the next capacity that is neither refuted nor given up
        out_.bound = low;
        int64_t next = low;
        while (low < out_.total && !out_of_time_) {
            Search::Result r = solve(next, budget, offset);
            if (r == Search::FOUND) {
                int64_t total = 0;
                for (size_t i = 0; i < p_.items.size(); ++i) total = std::max(total, offset[i] + p_.items[i].height);
                keep(offset, total, 60);
            } else {
                // All below is refuted only if nothing below was given up.
                if (r == Search::NONE && out_.bound == low) out_.bound = next + unit;
                low = next + unit;
                if (r == Search::STOPPED) {
                    budget = in_.budget / 8;
                    if (out_.total - low <= out_.total / 2000) break;  // not worth more
                }
            }
            next = low + (out_.total - low) / 2 / unit * unit;
        }
    }

    const effc_mem_placement& in_;
    effc_mem_placed& out_;
    Problem p_;
    std::vector<int64_t> best_, load_;
    Clock::time_point started_, until_;
    bool out_of_time_ = false;
};

}  // namespace
}  // namespace effc_memory

extern "C" EFFC_MEM_API int effc_mem_place(const effc_mem_placement* in, effc_mem_placed* out) {
    try {
        effc_memory::PlacePlanner(*in, *out).run();
        return 0;
    } catch (...) {
        return 1;  // no memory left
    }
}
