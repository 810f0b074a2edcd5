// A sequence of runs, nodes repeated where that pays, that costs least within a capacity, by annealing.
//
// A tensor's uses and the runs that make it divide time into gaps. In a gap that other steps lie in, the tensor stays or
// is out, which costs a copy back and, once, a copy there; a gap that ends with another run of its maker costs nothing
// but that run. Which gaps are out, given the sequence, is a covering problem: every step's excess over the capacity has
// to be covered by gaps that span it. It is solved by local ratio (Bar-Yehuda and Even, 1985; for caching Bar-Noy et al.,
// 2001) over several orders of the steps, the best of them, without what turns out to be needless. Annealing over the
// sequences: single nodes and independent blocks move, a tensor's next reader is pulled towards it, runs are repeated
// instead of a copy back (with the runs they need in turn) and taken out again.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.h"

namespace effc_memory {
namespace {

constexpr int64_t TOO_MUCH = int64_t(1) << 52;  // the cost of a sequence with a step that cannot fit, and more by its excess

struct Gap {
    int tensor, from, to, group;
    int64_t bytes;
    bool out, locked;  // locked: out because its bytes are needed for a step's result
};

struct Span {
    const int64_t *first, *list;
    struct Row {
        const int64_t *b, *e;
        const int64_t* begin() const { return b; }
        const int64_t* end() const { return e; }
        size_t size() const { return size_t(e - b); }
    };
    Row operator[](int64_t i) const { return {list + first[i], list + first[i + 1]}; }
};

struct Random {
    uint64_t s;
    uint64_t next() {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        return s * 0x2545F4914F6CDD1DULL;
    }
    int below(int n) { return int((next() >> 33) % uint64_t(n)); }
    double unit() { return double(next() >> 11) / 9007199254740992.0; }
};

class BudgetPlanner {
  public:
    BudgetPlanner(const effc_mem_limited& in)
        : in_(in), n_(int(in.nodes)), m_(int(in.tensors)), ins_{in.in_first, in.in}, outs_{in.out_first, in.out},
          after_{in.after_first, in.after}, over_{in.over_first, in.over}, parts_{in.part_first, in.part},
          writes_{in.write_first, in.write} {
        last_.resize(m_), group_.resize(m_), pend_.resize(m_), ran_.resize(n_), producer_.assign(m_, -1), mark_.resize(m_);
        for (int n = 0; n < n_; ++n)
            for (int64_t t : outs_[n]) producer_[t] = n;
        node_mark_.resize(n_);
        random_.s = uint64_t(in.seed) * 0x9E3779B97F4A7C15ULL + 0x1234567ULL;
    }

    // What a sequence costs, with the gaps that are out; -1 if it is none of this graph.
    // Past `enough` it need not be exact.
    int64_t evaluate(const std::vector<int>& seq, const int64_t* capacity, const uint8_t* forced,
                     int64_t enough = INT64_MAX) {
        int64_t reruns = build(seq, forced);
        if (reruns < 0 || reruns > enough) return -1;
        int64_t penalty = forced_outs(capacity);
        if (penalty && enough < TOO_MUCH) return -1;
        int64_t moved = cover(capacity, enough - reruns);
        if (penalty) return TOO_MUCH + penalty + (moved + reruns) / 16;
        return moved + reruns;
    }

    const std::vector<Gap>& gaps() const { return gaps_; }

    int anneal(std::vector<int> seq, effc_mem_sequence& out) {
        auto began = std::chrono::steady_clock::now();
        int64_t work = 0;
        std::vector<int> best = seq, trial;
        int64_t cost = evaluate(seq, nullptr, nullptr);
        if (cost < 0) return 2;
        out.start_cost = cost;
        int64_t least = cost;
        keep();
        double start = in_.heat > 0 ? in_.heat : 0.05, stop = start / 300;
        double scale = double(cost < TOO_MUCH ? cost : 1);
        if (cost >= TOO_MUCH) {
            scale = 0;
            for (int t = 0; t < m_; ++t) scale += double(in_.bytes[t]);
        }
        double temperature = scale * start;
        int64_t rounds = 0;
        int ended = least == 0 ? EFFC_MEM_PROVEN : EFFC_MEM_BUDGET;
        while (work < in_.budget && least > 0) {
            if ((rounds++ & 63) == 0) {
                double done = double(work) / double(in_.budget);
                std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
                if (took.count() > in_.seconds) {
                    ended = EFFC_MEM_TIME;
                    break;
                }
                double s = double(least < TOO_MUCH ? least : int64_t(scale));
                temperature = std::max(1.0, s * start * std::pow(stop / start, done));
            }
            work += int64_t(seq.size()) + 16;
            if (!propose(seq, trial)) continue;
            double enough = double(cost) - temperature * std::log(random_.unit() + 1e-300);
            int64_t got = evaluate(trial, nullptr, nullptr, int64_t(std::min(enough, 4e18)));
            ++out.evaluations;
            if (got < 0 || double(got) > enough) continue;
            cost = got;
            seq.swap(trial);
            keep();
            if (cost < least || (cost == least && seq.size() < best.size())) {
                least = cost, best = seq;
                if (!least) ended = EFFC_MEM_PROVEN;
            }
        }
        out.length = int64_t(best.size());
        if (out.length > out.room) return 3;
        for (size_t i = 0; i < best.size(); ++i) out.sequence[i] = best[i];
        out.cost = least;
        out.ended = ended;
        return 0;
    }

  private:
    // Gaps and what each step needs by itself. The cost of repeated runs, -1 if the sequence is not valid.
    int64_t build(const std::vector<int>& seq, const uint8_t* forced) {
        int length = int(seq.size());
        gaps_.clear(), takes_.clear();
        base_.resize(length + 1), pre_.resize(length + 1);
        std::fill(last_.begin(), last_.end(), -1);
        std::fill(pend_.begin(), pend_.end(), -1);
        std::fill(ran_.begin(), ran_.end(), 0);
        groups_ = 0;
        int64_t reruns = 0;
        int first_runs = 0;
        auto gap = [&](int t, int to) {
            int from = last_[t];
            if (pend_[t] >= 0 && takes_[pend_[t]].step == from) takes_[pend_[t]].gap = int(gaps_.size());
            gaps_.push_back({t, from, to, group_[t], in_.bytes[t], forced && forced[gaps_.size()] != 0, false});
        };
        for (int i = 0; i < length; ++i) {
            int n = seq[i];
            if (ran_[n]) {
                if (in_.rerun[n] < 0) return -1;
                reruns += in_.rerun[n];
            } else {
                for (int64_t u : after_[n])
                    if (!ran_[u]) return -1;
                ran_[n] = 1;
                ++first_runs;
            }
            int64_t need = 0;
            for (int64_t t : ins_[n]) {
                if (last_[t] < 0) return -1;
                gap(int(t), i);
                last_[t] = i;
                need += in_.bytes[t];
            }
            pre_[i] = need;
            for (int64_t t : writes_[n]) new_group(int(t));
            for (int64_t t : outs_[n]) {
                if (last_[t] < 0) new_group(int(t));
                last_[t] = i;
                need += in_.bytes[t];
            }
            base_[i] = need + in_.workspace[n];
            for (int64_t t : parts_[n]) {
                pend_[t] = int(takes_.size());
                takes_.push_back({int(t), i, -1, true, in_.bytes[t]});
            }
            if (!parts_[n].size())
                for (int64_t t : over_[n]) {
                    pend_[t] = int(takes_.size());
                    takes_.push_back({int(t), i, -1, false, std::min(in_.bytes[t], in_.bytes[*outs_[n].begin()])});
                }
        }
        if (first_runs != n_) return -1;
        int64_t need = 0;
        for (int t = 0; t < m_; ++t)
            if (in_.stays[t] && producer_[t] >= 0) {
                gap(t, length);
                need += in_.bytes[t];
            }
        base_[length] = pre_[length] = need;
        return reruns;
    }

    void new_group(int t) {
        group_[t] = groups_++;
    }

    int64_t capacity(const int64_t* each, int step) const { return each ? each[step] : in_.capacity; }

    // Overwriting and parts of concatenations at operands that die; where a step does not fit even so, operands that
    // are read later are put out for it. Bytes that are too many.
    int64_t forced_outs(const int64_t* each) {
        gain_.assign(base_.size(), 0);
        for (size_t k = 0; k < takes_.size();) {
            int step = takes_[k].step;
            size_t e = k;
            while (e < takes_.size() && takes_[e].step == step) ++e;
            int64_t gain = 0;
            bool part = takes_[k].part;
            for (size_t x = k; x < e; ++x)
                if (takes_[x].gap < 0 || gaps_[takes_[x].gap].out) {
                    int64_t b = takes_[x].gain;
                    gain = part ? gain + b : std::max(gain, b);
                    if (takes_[x].gap >= 0 && part) gaps_[takes_[x].gap].locked = true;
                }
            int64_t full = base_[step], over = full - gain - capacity(each, step);
            if (over > 0) {
                std::vector<std::pair<int64_t, int>> more;
                for (size_t x = k; x < e; ++x)
                    if (takes_[x].gap >= 0 && !gaps_[takes_[x].gap].out)
                        more.push_back({takes_[x].gain, takes_[x].gap});
                std::sort(more.begin(), more.end());
                if (part) {
                    for (size_t x = more.size(); x-- > 0 && over > 0;) {
                        gaps_[more[x].second].out = gaps_[more[x].second].locked = true;
                        gain += more[x].first, over -= more[x].first;
                    }
                } else {
                    for (auto& [b, g] : more)
                        if (full - b <= capacity(each, step)) {
                            gaps_[g].out = gaps_[g].locked = true;
                            gain = std::max(gain, b);
                            break;
                        }
                }
            }
            gain_[step] = gain;
            k = e;
        }
        int64_t penalty = 0;
        for (size_t s = 0; s < base_.size(); ++s) {
            base_[s] = std::max(pre_[s], base_[s] - gain_[s]);
            int64_t over = base_[s] - capacity(each, int(s));
            if (over > 0) penalty += over;
        }
        return penalty;
    }

    int64_t cover(const int64_t* each, int64_t enough) {
        int length = int(base_.size());
        excess_.assign(length + 1, 0);
        for (const Gap& g : gaps_)
            if (!g.out && g.to - g.from > 1) excess_[g.from + 1] += g.bytes, excess_[g.to] -= g.bytes;
        int64_t run = 0, worst = 0;
        over_before_.assign(length + 1, 0);
        for (int s = 0; s < length; ++s) {
            run += excess_[s];
            int64_t room = std::max<int64_t>(0, capacity(each, s) - base_[s]);
            excess_[s] = run - room;
            worst = std::max(worst, excess_[s]);
            over_before_[s + 1] = over_before_[s] + (excess_[s] > 0);
        }
        std::vector<uint8_t> written(groups_, 0);
        int64_t fixed = 0;
        for (const Gap& g : gaps_)
            if (g.out) {
                fixed += in_.move[g.tensor];
                if (!written[g.group]) written[g.group] = 1, fixed += in_.copy[g.tensor];
            }
        if (worst <= 0) return fixed;
        cand_.clear();
        for (int k = 0; k < int(gaps_.size()); ++k) {
            const Gap& g = gaps_[k];
            if (!g.out && g.bytes && g.to - g.from > 1 && over_before_[g.to] > over_before_[g.from + 1]) cand_.push_back(k);
        }
        if (fixed > enough) return fixed;
        by_from_ = cand_, by_to_ = cand_;
        for (int k = 0; k < int(cand_.size()); ++k) by_from_[k] = by_to_[k] = k;
        std::sort(by_from_.begin(), by_from_.end(), [&](int a, int b) {
            const Gap &x = gaps_[cand_[a]], &y = gaps_[cand_[b]];
            return x.from != y.from ? x.from < y.from : a < b;
        });
        std::reverse(by_to_.begin(), by_to_.end());  // gaps are made in the order of their ends
        int64_t best = INT64_MAX;
        int first = way_;
        for (int k = 0; k < 3; ++k) {
            int way = (first + k) % 3;
            int64_t got = cover_by(way, written);
            if (got < best) best = got, best_out_ = out_, way_ = way;
            if (!got || double(got) * 0.9 > double(enough - fixed)) break;
        }
        for (size_t k = 0; k < cand_.size(); ++k) gaps_[cand_[k]].out = best_out_[k];
        return fixed + best;
    }

    int64_t cover_by(int way, const std::vector<uint8_t>& written_before) {
        int length = int(base_.size()), c = int(cand_.size());
        left_ = excess_;
        written_ = written_before;
        out_.assign(c, 0);
        price_.resize(c);
        picked_.clear();
        for (int k = 0; k < c; ++k) {
            const Gap& g = gaps_[cand_[k]];
            price_[k] = double(in_.move[g.tensor] + (written_[g.group] ? 0 : in_.copy[g.tensor]));
        }
        int at = way == 1 ? length - 1 : 0, next = 0, last = -1;
        active_.clear();
        while (true) {
            int p = -1;
            if (way == 2) {
                int64_t most = 0;
                for (int s = 0; s < length; ++s)
                    if (left_[s] > most) most = left_[s], p = s;
            } else if (way == 0) {
                while (at < length && left_[at] <= 0) ++at;
                if (at < length) p = at;
            } else {
                while (at >= 0 && left_[at] <= 0) --at;
                if (at >= 0) p = at;
            }
            if (p < 0) break;
            // The gaps that span p: for the first two ways those that have begun, without those that have ended.
            if (way == 2) {
                active_.clear();
                for (int k = 0; k < c; ++k)
                    if (!out_[k] && gaps_[cand_[k]].from < p && gaps_[cand_[k]].to > p) active_.push_back(k);
            } else if (p != last) {
                const std::vector<int>& order = way == 0 ? by_from_ : by_to_;
                while (next < c) {
                    const Gap& g = gaps_[cand_[order[next]]];
                    if (way == 0 ? g.from >= p : g.to <= p) break;
                    active_.push_back(order[next++]);
                }
                size_t n = 0;
                for (int k : active_) {
                    const Gap& g = gaps_[cand_[k]];
                    if (!out_[k] && (way == 0 ? g.to > p : g.from < p)) active_[n++] = k;
                }
                active_.resize(n);
                last = p;
            }
            int chosen = -1;
            double least = 0;
            int reach = 0;
            for (int k : active_) {
                if (out_[k]) continue;
                const Gap& g = gaps_[cand_[k]];
                double ratio = price_[k] / double(std::min(g.bytes, left_[p]));
                int far = way == 0   ? over_before_[g.to] - over_before_[p]
                          : way == 1 ? over_before_[p + 1] - over_before_[g.from + 1]
                                     : over_before_[g.to] - over_before_[g.from + 1];
                if (chosen < 0 || ratio < least - 1e-9 || (ratio < least + 1e-9 && far > reach))
                    chosen = k, least = ratio, reach = far;
            }
            if (chosen < 0) {  // the step alone is too much, which the caller knows
                left_[p] = 0;
                continue;
            }
            for (int k : active_) {
                if (out_[k]) continue;
                price_[k] -= least * double(std::min(gaps_[cand_[k]].bytes, left_[p]));
            }
            out_[chosen] = 1;
            picked_.push_back(chosen);
            const Gap& g = gaps_[cand_[chosen]];
            for (int s = g.from + 1; s < g.to; ++s) left_[s] -= g.bytes;
            if (!written_[g.group]) {
                written_[g.group] = 1;
                if (in_.copy[g.tensor])
                    for (int k = 0; k < c; ++k)
                        if (gaps_[cand_[k]].group == g.group && !out_[k])
                            price_[k] = std::max(0.0, price_[k] - double(in_.copy[g.tensor]));
            }
        }
        // Steps that overwrite an operand that is now out need less.
        std::vector<uint8_t> held;
        if (!takes_.empty()) {
            out_of_.assign(gaps_.size(), -1);
            for (int k = 0; k < c; ++k)
                if (out_[k]) out_of_[cand_[k]] = k;
            held.assign(c, 0);
            for (size_t x = 0; x < takes_.size(); ++x) {
                int g = takes_[x].gap, s = takes_[x].step;
                if (g < 0 || out_of_[g] < 0 || takes_[x].part) continue;
                int64_t more = takes_[x].gain - gain_[s];
                more = std::min(more, base_[s] - pre_[s]);
                if (more <= 0 || over_before_[s + 1] == over_before_[s]) continue;
                if (x && takes_[x - 1].step == s) continue;  // one a step
                left_[s] -= more;
                held[out_of_[g]] = 1;
            }
        }
        for (size_t i = picked_.size(); i-- > 0;) {
            int k = picked_[i];
            if (!held.empty() && held[k]) continue;
            const Gap& g = gaps_[cand_[k]];
            bool free = true;
            for (int s = g.from + 1; free && s < g.to; ++s) free = left_[s] + g.bytes <= 0;
            if (!free) continue;
            out_[k] = 0;
            for (int s = g.from + 1; s < g.to; ++s) left_[s] += g.bytes;
        }
        written_ = written_before;
        int64_t cost = 0;
        for (int k = 0; k < c; ++k)
            if (out_[k]) {
                const Gap& g = gaps_[cand_[k]];
                cost += in_.move[g.tensor];
                if (!written_[g.group]) written_[g.group] = 1, cost += in_.copy[g.tensor];
            }
        return cost;
    }

    // Of the sequence that was taken: which gaps are out, where nodes run again.
    void keep() {
        kept_ = gaps_;
        outs_now_.clear();
        for (int k = 0; k < int(kept_.size()); ++k)
            if (kept_[k].out) outs_now_.push_back(k);
    }

    bool propose(const std::vector<int>& seq, std::vector<int>& trial) {
        int length = int(seq.size());
        double x = random_.unit();
        if (outs_now_.empty()) x *= 0.5;
        if (x < 0.3) return shift(seq, trial, random_.below(length));
        if (x < 0.4) return swap_blocks(seq, trial);
        if (x < 0.5) return remove_rerun(seq, trial);
        const Gap& g = kept_[outs_now_[random_.below(int(outs_now_.size()))]];
        if (x < 0.58) return shift(seq, trial, x < 0.54 || g.to >= length ? g.from : g.to);
        if (x < 0.75 || !in_.recompute) return gather(seq, trial, g);
        return rerun(seq, trial, g);
    }

    bool depends(int later, int earlier) const {
        for (int64_t t : outs_[earlier])
            for (int64_t u : ins_[later])
                if (t == u) return true;
        for (int64_t u : after_[later])
            if (u == earlier) return true;
        return false;
    }

    bool shift(const std::vector<int>& seq, std::vector<int>& trial, int i) {
        int length = int(seq.size()), n = seq[i], lo = i, hi = i;
        int most = random_.unit() < 0.5 ? 8 : length;
        while (lo > 0 && i - lo < most && !depends(n, seq[lo - 1]) && seq[lo - 1] != n) --lo;
        while (hi + 1 < length && hi - i < most && !depends(seq[hi + 1], n) && seq[hi + 1] != n) ++hi;
        if (lo == hi) return false;
        double x = random_.unit();
        int to = x < 0.2 ? lo : x < 0.4 ? hi : lo + random_.below(hi - lo + 1);
        if (to == i) return false;
        trial = seq;
        if (to < i)
            std::rotate(trial.begin() + to, trial.begin() + i, trial.begin() + i + 1);
        else
            std::rotate(trial.begin() + i, trial.begin() + i + 1, trial.begin() + to + 1);
        return true;
    }

    bool swap_blocks(const std::vector<int>& seq, std::vector<int>& trial) {
        int length = int(seq.size());
        if (length < 3) return false;
        int a = random_.below(length - 1), most = random_.unit() < 0.5 ? 6 : 30;
        int b = a + 1 + random_.below(std::min(most, length - a - 1));
        if (b >= length) return false;
        int c = b + 1 + random_.below(std::min(most, length - b));
        trial = seq;
        std::rotate(trial.begin() + a, trial.begin() + b, trial.begin() + std::min(c, length));
        return true;
    }

    bool remove_rerun(const std::vector<int>& seq, std::vector<int>& trial) {
        if (int(seq.size()) == n_) return swap_blocks(seq, trial);
        std::fill(ran_.begin(), ran_.end(), 0);
        again_.clear();
        for (int i = 0; i < int(seq.size()); ++i) {
            if (ran_[seq[i]]) again_.push_back(i);
            ran_[seq[i]] = 1;
        }
        int k = random_.below(int(again_.size()));
        int first = again_[k], last = first;
        // With the ones directly before it, sometimes: chains come and go together.
        if (random_.unit() < 0.4)
            while (k > 0 && again_[k - 1] == first - 1) first = again_[--k];
        trial.assign(seq.begin(), seq.begin() + first);
        trial.insert(trial.end(), seq.begin() + last + 1, seq.end());
        return true;
    }

    // The next reader of a tensor that is out is pulled towards the step before, with what it needs of the runs between;
    // or that step is pushed towards it, with what needs it.
    bool gather(const std::vector<int>& seq, std::vector<int>& trial, const Gap& g) {
        int a = g.from, b = std::min(g.to, int(seq.size()) - 1);
        if (b - a < 2) return false;
        std::fill(mark_.begin(), mark_.end(), 0);
        std::fill(node_mark_.begin(), node_mark_.end(), 0);
        std::vector<int> with, rest;
        bool pull = random_.unit() < 0.5;
        int stop = random_.unit() < 0.5 ? (pull ? a : b) : a + random_.below(b - a + 1);
        if (pull) {
            if (stop >= b) return false;
            for (int i = b; i > stop; --i) {
                int n = seq[i];
                bool in = i == b || node_mark_[n];
                for (int64_t t : outs_[n]) in = in || mark_[t];
                if (in) {
                    with.push_back(n);
                    for (int64_t t : outs_[n]) mark_[t] = 0;
                    for (int64_t t : ins_[n]) mark_[t] = 1;
                    for (int64_t u : after_[n]) node_mark_[u] = 1;
                } else {
                    rest.push_back(n);
                }
            }
            if (rest.empty()) return false;
            std::reverse(with.begin(), with.end());
            std::reverse(rest.begin(), rest.end());
            trial.assign(seq.begin(), seq.begin() + stop + 1);
            trial.insert(trial.end(), with.begin(), with.end());
            trial.insert(trial.end(), rest.begin(), rest.end());
            trial.insert(trial.end(), seq.begin() + b + 1, seq.end());
            return true;
        }
        if (stop <= a) return false;
        for (int i = a; i < stop; ++i) {
            int n = seq[i];
            bool in = i == a;
            for (int64_t t : ins_[n]) in = in || mark_[t];
            for (int64_t u : after_[n]) in = in || node_mark_[u];
            if (in) {
                with.push_back(n);
                node_mark_[n] = 1;
                for (int64_t t : outs_[n]) mark_[t] = 1;
            } else {
                rest.push_back(n);
            }
        }
        if (rest.empty()) return false;
        trial.assign(seq.begin(), seq.begin() + a);
        trial.insert(trial.end(), rest.begin(), rest.end());
        trial.insert(trial.end(), with.begin(), with.end());
        trial.insert(trial.end(), seq.begin() + stop, seq.end());
        return true;
    }

    bool rerun(const std::vector<int>& seq, std::vector<int>& trial, const Gap& g) {
        chain_.clear();
        if (!wants(g.tensor, g.to, 0)) return false;
        if (int(seq.size() + chain_.size()) > 3 * n_ + 8) return false;
        int at = g.to;
        trial.assign(seq.begin(), seq.begin() + at);
        trial.insert(trial.end(), chain_.begin(), chain_.end());
        trial.insert(trial.end(), seq.begin() + at, seq.end());
        return true;
    }

    // Runs that make the tensor before a step, what they need resident or made in turn.
    bool wants(int t, int step, int depth) {
        int n = producer_[t];
        if (in_.rerun[n] < 0 || depth > 7) return false;
        if (std::find(chain_.begin(), chain_.end(), n) != chain_.end()) return true;
        for (int64_t u : ins_[n]) {
            int state = 0;  // 0 dead, 1 out, 2 there
            for (const Gap& x : kept_)
                if (x.tensor == u && x.from < step && step <= x.to) {
                    state = x.out && x.to != step ? 1 : 2;
                    if (x.out && x.to == step) state = 1;
                    break;
                }
            if (state == 2) continue;
            if (random_.unit() < (state == 1 ? 0.5 : 0.75) && in_.rerun[producer_[u]] >= 0) wants(int(u), step, depth + 1);
        }
        chain_.push_back(n);
        return true;
    }

    struct Take {
        int tensor, step, gap;
        bool part;
        int64_t gain;
    };

    const effc_mem_limited& in_;
    int n_, m_;
    Span ins_, outs_, after_, over_, parts_, writes_;
    std::vector<Gap> gaps_, kept_;
    std::vector<Take> takes_;
    std::vector<int> last_, group_, pend_, ran_, producer_, over_before_, cand_, picked_, outs_now_, again_, chain_, out_of_;
    std::vector<int> by_from_, by_to_, active_;
    int way_ = 0;
    std::vector<uint8_t> mark_, node_mark_;
    int groups_ = 0;
    std::vector<int64_t> base_, pre_, gain_, excess_, left_;
    std::vector<uint8_t> out_, best_out_, written_;
    std::vector<double> price_;
    Random random_{1};
};

}  // namespace
}  // namespace effc_memory

extern "C" EFFC_MEM_API int effc_mem_limit(const effc_mem_limited* in, effc_mem_sequence* out) {
    try {
        effc_memory::BudgetPlanner planner(*in);
        return planner.anneal(std::vector<int>(in->start, in->start + in->length), *out);
    } catch (...) {
        return 1;
    }
}

extern "C" EFFC_MEM_API int effc_mem_evict(const effc_mem_limited* in, const int64_t* capacity, const uint8_t* forced,
                                           effc_mem_gaps* out) {
    try {
        effc_memory::BudgetPlanner planner(*in);
        out->cost = planner.evaluate(std::vector<int>(in->start, in->start + in->length), capacity, forced);
        if (out->cost < 0) return 2;
        out->count = int64_t(planner.gaps().size());
        if (out->count > out->room) return 3;
        for (int64_t k = 0; k < out->count; ++k) {
            const auto& g = planner.gaps()[k];
            out->tensor[k] = g.tensor, out->from[k] = g.from, out->to[k] = g.to, out->group[k] = g.group;
            out->out[k] = g.out;
        }
        return 0;
    } catch (...) {
        return 1;
    }
}
