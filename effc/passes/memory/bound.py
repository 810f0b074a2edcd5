"""What no plan within a capacity costs less than, whatever its order: a relaxation that HiGHS solves (through SciPy).

At the first run of a node n its operands and results are resident, so of the rest only so much is. The rest is what was
made before and is read for the first time after: a tensor t is *needed across* n where its maker precedes n and one of
its readers does not. It is resident at n, or it comes back later, by a copy or by another run of its maker, which needs
that one's operands in turn at n or later:

    precedes[a,n]                                  of first runs; constants where the graph decides
    needed[t,n] >= precedes[maker of t,n] - precedes[r,n]     for each reader r that does not come before n
    resident[t,n] + back[t,n] + again[maker of t,n] >= needed[t,n]
    resident[u,n] + back[u,n] + again[maker of u,n] >= again[m,n]     for each operand u of m
    sum of bytes[t] resident[t,n] <= capacity - own bytes of n
    back[t,n] <= back[t],  again[m,n] <= again[m]
    minimise  sum (move + copy) back[t] + rerun again[m]

Between two readers of which one must follow the other a tensor that is out comes back once for each (``_gaps``). With
``precedes`` fixed at 0 and 1 for one n this is a closure, whose weight is a minimum cut; together they share ``back``
and ``again``, which is what makes it a bound on the sum. Solved as a linear program first, then with whole numbers;
whatever the solver has proven when its time ends is a bound. Bytes are counted without fragmentation, each node at its
first run alone, so a bound below the cost of a plan does not say that there is a better one.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .budget import Model

MOST = 120_000  # pairs of a tensor and a node that are looked at; the fullest nodes come first


@dataclass(frozen=True)
class Bound:
    """``cost``: in bytes, no plan has less. ``ended``: ``proven`` where the relaxation was solved (its optimum is the
    bound) or nothing is cheaper than the plan it was asked about, ``time``, or a reason why nothing was done."""

    cost: int
    ended: str
    seconds: float


class _Rows:
    """Columns and rows of a mixed-integer program."""

    def __init__(self) -> None:
        self.price: list[float] = []
        self.most: list[float] = []
        self.at: list[tuple[int, int]] = []
        self.value: list[float] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.whole: list[int] = []

    def column(self, price: float = 0.0, most: float = 1.0, whole: bool = False) -> int:
        self.price.append(price)
        self.most.append(most)
        self.whole.append(int(whole))
        return len(self.price) - 1

    def row(self, terms: list[tuple[float, int]], low: float = -math.inf, high: float = math.inf) -> None:
        k = len(self.low)
        for c, v in terms:
            self.at.append((k, v))
            self.value.append(c)
        self.low.append(low)
        self.high.append(high)

    def solve(self, whole: bool, seconds: float, scale: float, high: float) -> Any:
        """Prices are divided by ``scale``, and only what costs at most ``high`` is of interest."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix, vstack

        where = np.array(self.at).reshape(-1, 2).T
        price = np.array(self.price) / scale
        rows = csr_matrix((self.value, (where[0], where[1])), shape=(len(self.low), len(price)))
        return milp(
            price,
            constraints=LinearConstraint(
                vstack([rows, csr_matrix(price)]), [*self.low, -math.inf], [*self.high, high / scale]
            ),
            bounds=Bounds(0, self.most),
            integrality=np.array(self.whole) * int(whole),
            options={"time_limit": max(0.05, seconds), "mip_rel_gap": 0.0},
        )


class _Relaxation:
    """Nodes by their position in the order given; sets of them are bit masks."""

    def __init__(self, m: Model, only: Collection[int] | None = None) -> None:
        self.m, self.x = m, _Rows()
        self.nodes = m.nodes
        self.maker = {t: m.at[n] for t, n in m.producer.items()}
        self.before: list[int] = []
        for n in self.nodes:
            mask = 0
            for u in self._needs(n.id):
                mask |= self.before[u] | 1 << u
            self.before.append(mask)
        self.behind = [0] * len(self.nodes)
        for k in reversed(range(len(self.nodes))):
            for u in self._needs(self.nodes[k].id):
                self.behind[u] |= self.behind[k] | 1 << k
        self.readers: dict[int, list[int]] = {t: [] for t in m.names}
        for k, n in enumerate(self.nodes):
            for t in m._ins(n):
                self.readers[t].append(k)
        # What was joined may be read from what holds it: until then alone it takes bytes for sure.
        self.parts = {t for ts in m.parts.values() for t in ts}
        for k, n in enumerate(self.nodes):
            for t in m.parts[n.id]:
                self.readers[t] = [r for r in self.readers[t] if r == k or self.before[k] >> r & 1]
        self.own = [m.own(n, self._joined(k)) for k, n in enumerate(self.nodes)]
        self.count = len(self.nodes)
        self.above = [sorted(self._needs(n.id)) for n in self.nodes]
        self.below: list[list[int]] = [[] for _ in self.nodes]
        for k, us in enumerate(self.above):
            for u in us:
                self.below[u].append(k)
        # Events: k is the first run of node k, count + k its last.
        self.events: set[int] = set()
        self.precedes: dict[tuple[int, int], int] = {}  # node, event
        self.lasts: dict[tuple[int, int], int] = {}  # of two last runs, the lower first
        self.ordered: set[tuple[int, int]] = set()
        self.rerun: dict[tuple[int, int], int] = {}  # node, event: runs again after it
        self.pairs = 0
        self.back: dict[int, int] = {}
        self.again: dict[int, int] = {}
        self.resident: dict[tuple[int, int], int] = {}  # tensor, event
        self.fullest: list[int] = []
        self._nodes(only)
        self._orders()
        self._gaps()

    def _needs(self, n: int) -> set[int]:
        node = self.nodes[self.m.at[n]]
        return {self.maker[t] for t in self.m._ins(node)} | {self.m.at[u] for u in node.after}

    def _joined(self, k: int, again: bool = False) -> set[int]:
        """Operands that may lie in what they were joined into when a node runs, for the first time or ``again``."""
        return {
            t
            for j, n in enumerate(self.nodes)
            if j != k and (again or not self.behind[k] >> j & 1)
            for t in self.m.parts[n.id]
            if t in self.nodes[k].ins
        }

    def _apart(self, a: int, b: int) -> bool:
        return a != b and not (self.before[a] >> b | self.before[b] >> a) & 1

    def _precedes(self, a: int, e: int) -> tuple[int, list[tuple[float, int]]]:
        """Whether the first run of a comes before an event, or is it: a constant and terms."""
        k = e % self.count
        if a == k or self.before[k] >> a & 1:
            return 1, []
        if e < self.count:
            if self.behind[k] >> a & 1:
                return 0, []
            if a > e:
                constant, terms = self._precedes(e, a)
                return 1 - constant, [(-c, v) for c, v in terms]
        if (a, e) not in self.precedes:
            self.precedes[a, e] = self.x.column(whole=True)
        return 0, [(1.0, self.precedes[a, e])]

    def _back(self, t: int) -> int | None:
        if t not in self.back:
            if not (self.m.rules.spill or self.m.producer[t] in self.m.rules.sources):
                return None
            self.back[t] = self.x.column(self.m.move[t] + self.m.copy[t], whole=True)
        return self.back[t]

    def _again(self, k: int) -> int | None:
        if k not in self.again:
            if self.nodes[k].id not in self.m.rerun:
                return None
            self.again[k] = self.x.column(self.m.rerun[self.nodes[k].id], whole=True)
        return self.again[k]

    # Rows -------------------------------------------------------------------------------------------------------------

    def _across(self, e: int) -> list[int]:
        """Tensors that some order needs across an event."""
        m, k, last = self.m, e % self.count, e >= self.count
        mine = {*self.nodes[k].ins, *self.nodes[k].outs}
        stays = set(m.stays)
        return [
            t
            for t in m.names
            if m.size[t]
            and t not in mine
            and (last or not self.behind[k] >> self.maker[t] & 1)
            and (t in stays or any(not self.before[k] >> r & 1 for r in self.readers[t]))
        ]

    def _surely(self, k: int, t: int) -> bool:
        """Whether every order needs it across a node's first run."""
        if not self.before[k] >> self.maker[t] & 1:
            return False
        return t in self.m.stays or any(self.behind[k] >> r & 1 for r in self.readers[t])

    def _nodes(self, only: Collection[int] | None) -> None:
        m = self.m
        full = []
        for k in range(self.count) if only is None else sorted(only):
            ts = self._across(k)
            total = self.own[k] + sum(m.size[t] for t in ts)
            if total > m.capacity:
                surely = self.own[k] + sum(m.size[t] for t in ts if self._surely(k, t))
                full.append((-surely, -total, k, ts))
        for _, _, k, ts in sorted(full, key=lambda x: x[:3]):
            self.pairs += len(ts)
            if self.pairs > MOST:
                break
            self.fullest.append(k)
            self._event(k, ts)

    def last_run(self, k: int) -> None:
        """Rows for the last run of a node that may run again."""
        e = k + self.count
        ts = self._across(e)
        self.pairs += len(ts)
        if e in self.events or self.pairs > MOST:
            return
        x, again = self.x, self.again[k]
        self._event(e, ts)
        for (q, other), v in list(self.rerun.items()):
            if q == k and other != e:
                self._later(other, e, v)
        # A run that nothing reads is left out; outputs need no reader, and a concatenation may be one for its parts.
        if not set(self.nodes[k].outs) & set(self.m.stays) and not self.m.parts[self.nodes[k].id]:
            ways: list[tuple[float, int]] = []
            readers = {j for j, n in enumerate(self.nodes) if set(n.ins) & set(self.nodes[k].outs)}
            low = 0
            for r in sorted(readers):
                constant, terms = self._precedes(r, e)
                low += 1 - constant
                ways += [(-c, v) for c, v in terms]
                column = self._again(r)
                if column is not None:
                    ways.append((1.0, column))
            x.row([*ways, (-1.0, again)], low=-float(low))
        self._orders()

    def _later(self, e: int, last: int, v: int) -> None:
        """A node that runs again after an event has its last run after it."""
        if e < self.count:
            constant, terms = self._precedes(e, last)
        else:
            low, high = min(e, last), max(e, last)
            if (low, high) not in self.lasts:
                self.lasts[low, high] = self.x.column(whole=True)
            constant, terms = (0, [(1.0, self.lasts[low, high])]) if e == low else (1, [(-1.0, self.lasts[low, high])])
        self.x.row([*terms, (-1.0, v)], low=-float(constant))

    def _event(self, e: int, ts: list[int]) -> None:
        m, x, k = self.m, self.x, e % self.count
        self.events.add(e)
        mine = {*self.nodes[k].ins, *self.nodes[k].outs}
        here: dict[int, int] = {}
        back: dict[int, int] = {}

        def run(q: int) -> int | None:
            whole = self._again(q)
            if whole is None or (q, e) in self.rerun:
                return self.rerun.get((q, e))
            self.rerun[q, e] = v = x.column()
            x.row([(1.0, v), (-1.0, whole)], high=0.0)
            for u in m._ins(self.nodes[q]):
                if m.size[u] and u not in self.parts:
                    need(u, 0, [(1.0, v)])
            if q + self.count in self.events:
                self._later(e, q + self.count, v)
            return v

        def need(t: int, constant: int, terms: list[tuple[float, int]]) -> None:
            if t in mine or (constant <= 0 and not terms):
                return
            if t not in here:
                here[t] = self.resident[t, e] = x.column()
                whole = self._back(t)
                if whole is not None:
                    back[t] = x.column()
                    x.row([(1.0, back[t]), (-1.0, whole)], high=0.0)
            ways = [(1.0, here[t])]
            if t in back:
                ways.append((1.0, back[t]))
            rerun = run(self.maker[t])
            if rerun is not None:
                ways.append((1.0, rerun))
            x.row(ways + [(-c, v) for c, v in terms], low=float(constant))

        for t in ts:
            made, first = self._precedes(self.maker[t], e)
            if t in m.stays:
                need(t, made, first)
                continue
            for r in self.readers[t]:
                if not self.before[k] >> r & 1:
                    done, then = self._precedes(r, e)
                    need(t, made - done, first + [(-c, v) for c, v in then])
        # All bytes are multiples of the alignment, so half of one more changes nothing but what rounding does.
        own = self.own[k] if e < self.count else m.own(self.nodes[k], self._joined(k, True))
        room = m.capacity - own + m.align / 2
        x.row([(m.size[t] / m.capacity, v) for t, v in here.items()], high=room / m.capacity)

    def _orders(self) -> None:
        """What precedes b also precedes what follows b, and what comes before it does too. A last run that is the only
        one is the first."""
        x, pairs = self.x, self.precedes
        while True:
            new = [key for key in pairs if key not in self.ordered]
            if not new:
                break
            self.ordered.update(new)
            for a, b in new:
                v = pairs[a, b]
                if b >= self.count:
                    first, terms = self._precedes(a, b - self.count)
                    x.row([(1.0, v), *((-c, w) for c, w in terms)], low=float(first))
                    again = self.again[b - self.count]
                    x.row([(1.0, v), (-1.0, again), *((-c, w) for c, w in terms)], high=float(first))
                later = [] if b >= self.count else self.below[b]
                sooner = [] if b >= self.count else self.above[b]
                for c, d in [(u, b) for u in self.above[a]] + [(a, u) for u in later]:
                    self._implies(c, d, v, True)
                for c, d in [(u, b) for u in self.below[a]] + [(a, u) for u in sooner]:
                    self._implies(c, d, v, False)

    def _implies(self, c: int, d: int, v: int, forward: bool) -> None:
        """Rows for pairs that both have columns: v <= precedes[c,d], or the other way round."""
        key = (c, d) if d >= self.count else (min(c, d), max(c, d))
        if key not in self.precedes:
            return
        constant, terms = self._precedes(c, d)
        if forward:
            self.x.row([*terms, (-1.0, v)], low=-float(constant))
        else:
            self.x.row([*terms, (-1.0, v)], high=-float(constant))

    def _gaps(self) -> None:
        """Readers of a tensor in a chain, one after another in every order: between two, what is out comes back."""
        across: dict[int, list[int]] = {}
        more: dict[int, int] = {}  # further runs of a node, for all of its results
        for t, k in self.resident:
            across.setdefault(t, []).append(k)
        for t, ks in across.items():
            chain: list[int] = []
            for r in self.readers[t]:
                if not chain or self.before[r] >> chain[-1] & 1:
                    chain.append(r)
            gaps: dict[int, list[int]] = {}
            for k in ks:
                if k >= self.count or not self.before[k] >> self.maker[t] & 1:
                    continue
                for j, r in enumerate(chain):
                    if self.behind[k] >> r & 1 and (j == 0 or self.before[k] >> chain[j - 1] & 1):
                        gaps.setdefault(j, []).append(k)
            if len(gaps) < 2:
                continue
            terms = []
            for members in gaps.values():
                out = self.x.column()
                terms.append((1.0, out))
                for k in members:
                    self.x.row([(1.0, out), (1.0, self.resident[t, k])], low=1.0)
            # Beyond the first time, of which the price is counted there.
            if t in self.back:
                terms += [(-1.0, self.back[t]), (-1.0, self.x.column(self.m.move[t], math.inf, whole=True))]
            if (q := self.maker[t]) in self.again:
                if q not in more:
                    more[q] = self.x.column(self.m.rerun[self.nodes[q].id], math.inf, whole=True)
                terms += [(-1.0, self.again[q]), (-1.0, more[q])]
            self.x.row(terms, high=0.0)


def below(m: Model, cost: int, *, seconds: float = 2.0) -> Bound:
    """A bound for a plan of a ``cost``: at most that, which proves the plan best."""
    began = time.perf_counter()
    if cost <= 0:
        return Bound(0, "proven", 0.0)
    if importlib.util.find_spec("scipy") is None:
        return Bound(0, "SciPy is not installed (pip install 'effc[compile]')", 0.0)
    joint = _Relaxation(m)
    if not any(joint.x.price):
        return Bound(0, "proven", time.perf_counter() - began)
    best, share = 0, {}
    # Nodes by themselves are soon solved in whole numbers; then more and more of them, spread over the order, as what
    # they share adds up; all of them as a linear program, and as far as it goes in whole numbers.
    for k in joint.fullest:
        if time.perf_counter() - began > seconds / 4:
            break
        share[k] = _search(_Relaxation(m, {k}), cost, True, 0, seconds / 16)[0]
        best = max(best, share[k])
        if best >= cost:
            return Bound(cost, "proven", time.perf_counter() - began)

    def left() -> float:
        return seconds - (time.perf_counter() - began)

    best = _search(joint, cost, False, best, left() / 4)[0]
    spread, size, ended = sorted(joint.fullest), 2, False
    while best < cost and left() > 0.1:
        whole = size >= len(spread)
        some = {max(share, key=lambda k: share[k], default=spread[0])}
        some.update(spread[k * len(spread) // size] for k in range(size))
        best, ended = _search(joint if whole else _Relaxation(m, some), cost, True, best, left() / (1 if whole else 2))
        if whole:
            break
        size = size * 2 if ended else len(spread)
        ended = False
    return Bound(best, "proven" if ended or best >= cost else "time", time.perf_counter() - began)


def _search(r: _Relaxation, cost: int, whole: bool, least: int, seconds: float) -> tuple[int, bool]:
    """A bound, ``cost`` where nothing is cheaper, and whether it is the optimum of the relaxation."""
    until = time.perf_counter() + seconds
    x, m = r.x, r.m
    unit = math.gcd(*(round(c) for c in x.price), *(m.rerun.values() if m.rules.recompute else ()))
    scale = float(max(x.price, default=1.0)) or 1.0
    best = least

    def up(value: float) -> int:
        """To the next cost that there can be; the solver's tolerances are 1e-6."""
        return max(0, math.ceil(value / unit - 1e-6 * max(1.0, value / unit)) * unit)

    while (left := until - time.perf_counter()) > 0.02:
        got = x.solve(whole, left, scale, high=cost - unit / 2)
        if got.status == 2:
            return cost, True
        proven = got.fun if got.status == 0 else getattr(got, "mip_dual_bound", None) if whole else None
        if proven is not None and math.isfinite(proven):
            best = max(best, up(proven * scale))
        if best >= cost:
            return cost, True
        if got.status != 0:
            return best, False
        size = len(x.low)
        for k, v in list(r.again.items()):
            if got.x[v] > 1e-6:
                r.last_run(k)
        if len(x.low) == size:
            return best, True
    return best, False
