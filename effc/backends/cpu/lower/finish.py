"""The last step of lowering: results placed in the caller's arrays, memory (``memory.py``), and the JSON form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....ir import dims
from ....ir.dims import Dim, SymExpr
from ....ir.graph import Graph, Node
from ....passes.memory.program import operands
from . import memory

if TYPE_CHECKING:
    from . import Lowering


def _check(c: Any) -> dict[str, Any]:
    """The runtime knows == != <= >=; over integers, a < b is a + 1 <= b."""
    if c.op in ("<", ">"):
        return {
            "lhs": c.lhs + 1 if c.op == "<" else c.lhs,
            "op": c.op + "=",
            "rhs": c.rhs if c.op == "<" else c.rhs + 1,
            "message": c.message,
        }
    return {"lhs": c.lhs, "op": c.op, "rhs": c.rhs, "message": c.message}


def finish(cx: Lowering) -> dict[str, Any]:
    """The finished program; nested ones are inside their instructions."""
    outputs = _place_outputs(cx)
    commits = _commits(cx)
    outermost = cx
    while outermost.parent is not None:
        outermost = outermost.parent
    arena = memory.arrange(cx, outputs, commits, _symbols(outermost.graph))
    program: dict[str, Any] = {
        "symbols": _symbols(cx.graph) if cx.parent is None else _own_symbols(cx.graph),
        "values": cx.values,
        "code": cx.code,
        "inputs": list(range(len(cx.graph.inputs))),
        "outputs": outputs,
        "commits": commits,
        "checks": [_check(c) for c in cx.graph.checks],
        "arena": arena,
    }
    others = {
        name: compact({**program, "values": values, "code": code, "arena": {}})
        for name, (values, code) in cx.others.items()
    }
    return compact(program) | ({"others": others} if others else {})


def compact(program: dict[str, Any]) -> dict[str, Any]:
    """Drops values that nothing refers to (weights that were packed instead, views made on the way) and renumbers the
    rest."""
    values = program["values"]
    used: set[int] = {*program["inputs"], *program["outputs"], *(c["value"] for c in program["commits"])}
    for ins in program["code"]:
        used.update(operands(ins), ins["out"])
    todo = list(used)
    while todo:
        v = values[todo.pop()]
        for key in ("base", "alias"):
            if key in v and v[key] not in used:
                used.add(v[key])
                todo.append(v[key])
    # A value comes after what it refers to: outputs made late may be the base of earlier views.
    order: list[int] = []
    placed: set[int] = set()

    def place(i: int) -> None:
        if i in placed:
            return
        placed.add(i)
        for key in ("base", "alias"):
            if key in values[i]:
                place(values[i][key])
        order.append(i)

    for i in sorted(used):
        place(i)
    at = {old: new for new, old in enumerate(order)}
    at[-1] = -1
    for i in order:
        for key in ("base", "alias"):
            if key in values[i]:
                values[i][key] = at[values[i][key]]
    for ins in program["code"]:
        for key in ("in", "out", "carry", "xs", "consts"):
            if key in ins:
                ins[key] = [at[i] for i in ins[key]]
        if isinstance(ins.get("cond"), int):
            ins["cond"] = at[ins["cond"]]
    sequences = program["arena"].get("sequences", ())
    program["arena"]["sequences"] = [[at[i] if i >= 0 else i for i in seq] for seq in sequences]
    program["values"] = [values[i] for i in order]
    for key in ("inputs", "outputs"):
        program[key] = [at[i] for i in program[key]]
    program["commits"] = [{**c, "value": at[c["value"]]} for c in program["commits"]]
    return program


def _place_outputs(cx: Lowering) -> list[int]:
    """Gives each result its own ``output`` value: the storage of the producer where that is whole and dense, else a
    copy."""
    taken: set[int] = set()
    unbacked = _unbacked(cx.graph)
    out: list[int] = []
    for i, v in enumerate(cx.graph.outputs):
        buf = cx.strided(v)
        root = cx.values[buf.root]
        whole = (
            root["k"] == "temp"
            and buf.root not in taken
            and "strides" not in root
            and buf.offset == 0
            and buf.is_row_major
            and buf.dtype.value == root["d"]
            and buf.numel == dims.product(root["shape"])
        )
        shape = tuple(buf.shape)
        late = any(dims.symbols(d) & unbacked for d in shape)
        if whole and root.get("dyn"):
            whole = shape == tuple(root["shape"])
        if whole:
            fields = {"dyn": True} if root.get("dyn") else {}
            if shape == tuple(root["shape"]):
                root.update(k="output", i=i, **fields)
                out.append(buf.root)
            else:
                new = cx._value(buf.dtype, shape, "output", i=i, **fields)
                root.update(k="view", base=new, offset=0, strides=_dense(root["shape"]))
                out.append(new)
            taken.add(out[-1])
            taken.add(buf.root)
        else:
            target = cx.storage(buf.dtype, shape, "output", i=i)
            cx.node = None
            cx.call("effc_copy", [buf], [target], name="output")
            out.append(target.id)
        if late:
            cx.values[out[-1]]["late"] = True
    return out


def _dense(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    from . import row_major

    return row_major(shape)


def _unbacked(g: Graph) -> set[str]:
    bound = set().union(*(dims.symbols(d) for n in g.inputs for d in n.types[0].shape)) if g.inputs else set()
    return set(g.symbols) - bound - set(value_symbols(g))


def value_symbols(g: Graph) -> dict[str, int]:
    """Symbols given by integer scalar arguments (an ``item`` of an input): name -> input index."""
    index = {n[0]: i for i, n in enumerate(g.inputs)}
    return {str(n.attrs["value"]): index[n.operands[0]] for n in g.nodes if is_argument(g, n)}


def is_argument(g: Graph, n: Node) -> bool:
    """Whether the node only gives a name to an integer argument's value, so that it is known before the first
    instruction."""
    if n.op != "item" or n.operands[0].node not in g.inputs:
        return False
    return n.operands[0].type == n.types[0] and str(n.attrs["value"]).isidentifier()


def _commits(cx: Lowering) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for c in cx.graph.commits:
        buf = cx.strided(c.value)
        target = {"state": c.state} if c.state is not None else {"input": c.input}
        out.append({**target, "value": buf.id})
    return out


# JSON -----------------------------------------------------------------------------------------------------------------


def _symbols(g: Graph) -> list[dict[str, Any]]:
    """Each symbol with its bounds and where its value comes from, preferring a dim that is the symbol itself."""
    sources: dict[str, dict[str, Any]] = {s: {"input": i, "value": True} for s, i in value_symbols(g).items()}
    for want_plain in (True, False):
        for i, n in enumerate(g.inputs):
            for j, d in enumerate(n.types[0].shape):
                names = dims.symbols(d)
                if len(names) != 1 or (name := next(iter(names))) in sources:
                    continue
                at = [dims.evaluate(d, {name: x}) for x in (0, 1, 2, 3)]
                mul, add = at[1] - at[0], at[0]
                linear = (
                    mul != 0
                    and at[2] - at[1] == mul
                    and at[3] - at[2] == mul
                    and "//" not in str(d)
                    and "%" not in str(d)
                )
                if linear and (str(d) == name) == want_plain:
                    sources[name] = {"input": i, "dim": j, "mul": mul, "add": add}
    inside = set().union(*(sub.bound() for n in g.walk() for sub in n.subgraphs)) - g.bound() - set(sources)
    return [
        {"name": name, "lo": lo, "hi": hi, "from": sources.get(name)}
        for name, (lo, hi) in g.symbols.items()
        if name not in inside
    ]


def _own_symbols(g: Graph) -> list[dict[str, Any]]:
    """What a nested program binds itself, anew in each of its runs."""
    limits = {name: g.symbols.get(name, (0, None)) for name in sorted(g.bound())}
    return [{"name": n, "lo": lo, "hi": hi, "from": None, "own": True} for n, (lo, hi) in limits.items()]


def to_json(x: Any) -> Any:
    """Dims in the artifact's form, tuples as lists, everything else as it is."""
    if isinstance(x, SymExpr):
        return dims.to_json(x)
    if isinstance(x, dict):
        return {k: to_json(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [to_json(v) for v in x]
    if isinstance(x, float) and x != x:
        return "nan"
    if isinstance(x, float) and x in (float("inf"), float("-inf")):
        return "inf" if x > 0 else "-inf"
    return x
