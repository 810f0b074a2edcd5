"""Indexing, scattering, search and data-dependent sizes. Kernels: index.cpp, scatter.cpp, search.cpp, unique.cpp."""

from __future__ import annotations

from ....ir import dims
from ....ir.dims import Dim
from ....ir.graph import Node
from ....ir.op import broadcast_shapes
from ....ir.ops.movement import symbol_name
from ....runtime.errors import EffcError
from . import Lowering, lowers
from .movement import own_storage

REDUCE = {"none": 0, "sum": 1, "prod": 2, "amax": 3, "amin": 4, "mean": 5}
BLOCK = 32768  # elements per task of the kernels that compress (kBlock)


def open_size(cx: Lowering, node: Node) -> tuple[bool, Dim, list[str]]:
    """Is the node's ``size`` known from its data only? Then the kernel's size attribute, and the symbol it binds."""
    size = node.attrs["size"]
    name = symbol_name(size)
    if name is None or name in input_symbols(cx):
        return False, size, []
    return True, -1, [name]


def input_symbols(cx: Lowering) -> set[str]:
    """Symbols that the sizes of the graph's inputs define."""
    return {s for n in cx.graph.inputs for d in n.types[0].shape for s in dims.symbols(d)}


def block_bytes(numel: Dim) -> Dim:
    return dims.ceildiv(numel, BLOCK) * 8


@lowers("gather")
def lower_gather(cx: Lowering, node: Node) -> None:
    x, index = node.operands
    cx.call("effc_gather", [cx.strided(x), cx.strided(index)], [cx.out(node)], attrs=[node.attrs["dim"]])


@lowers("take")
def lower_take(cx: Lowering, node: Node) -> None:
    x, index = node.operands
    cx.call(
        "effc_take", [cx.dense(x), cx.dense(index)], [cx.out(node)], attrs=[node.attrs["dim"]],
        reads={0: dims.minimum(x.type.numel, node.types[0].numel)},
    )  # fmt: skip


@lowers("index")
def lower_index(cx: Lowering, node: Node) -> None:
    ins = [cx.strided(v) for v in node.operands]
    common = broadcast_shapes(*(v.shape for v in node.operands[1:]))
    cx.call("effc_index", ins, [cx.out(node)], attrs=node.attrs["dims"], scratch=dims.product(common) * 8)


@lowers("index_put")
def lower_index_put(cx: Lowering, node: Node) -> None:
    x, values, *indices = node.operands
    ins = [cx.dense(x), *(cx.strided(v) for v in (values, *indices))]
    common = broadcast_shapes(*(v.shape for v in indices))
    cx.call(
        "effc_index_put",
        ins,
        [cx.out(node)],
        attrs=[int(node.attrs["accumulate"]), *node.attrs["dims"], len(common), *common],
        scratch=dims.product(common) * 8,
        inplace=own_storage(ins),
    )


@lowers("scatter")
def lower_scatter(cx: Lowering, node: Node) -> None:
    x, index, src = node.operands
    reduce = node.attrs["reduce"]
    ins = [cx.dense(x), cx.strided(index), cx.strided(src)]
    cx.call(
        "effc_scatter",
        ins,
        [cx.out(node)],
        attrs=[node.attrs["dim"], REDUCE[reduce], int(node.attrs["include_self"])],
        scratch=x.type.numel * 4 if reduce == "mean" else 0,
        inplace=own_storage(ins),
    )


@lowers("masked_scatter")
def lower_masked_scatter(cx: Lowering, node: Node) -> None:
    ins = [cx.dense(v) for v in node.operands]
    cx.call(
        "effc_masked_scatter", ins, [cx.out(node)], scratch=block_bytes(node.types[0].numel), inplace=own_storage(ins)
    )


@lowers("masked_select", "nonzero")
def lower_masked_select(cx: Lowering, node: Node) -> None:
    ins = [cx.dense(v) for v in node.operands]
    dyn, size, bind = open_size(cx, node)
    cx.call(f"effc_{node.op}", ins, [cx.out(node, dyn=dyn)], attrs=[size], scratch=block_bytes(ins[0].numel), bind=bind)


@lowers("item")
def lower_item(cx: Lowering, node: Node) -> None:
    name = symbol_name(node.attrs["value"])
    if name is None:
        raise EffcError(f"item: value must be a symbol, not {node.attrs['value']}", op="item", loc=node.loc)
    cx.call("effc_item", [cx.strided(node.operands[0])], [cx.out(node)], bind=[name])


@lowers("repeat_interleave")
def lower_repeat_interleave(cx: Lowering, node: Node) -> None:
    dyn, size, bind = open_size(cx, node)
    cx.call("effc_repeat_interleave", [cx.dense(node.operands[0])], [cx.out(node, dyn=dyn)], attrs=[size], bind=bind)


@lowers("bincount")
def lower_bincount(cx: Lowering, node: Node) -> None:
    ins = [None if v is None else cx.dense(v) for v in (*node.inputs, None)[:2]]
    dyn, size, bind = open_size(cx, node)
    cx.call("effc_bincount", ins, [cx.out(node, dyn=dyn)], attrs=[node.attrs["minlength"], size], bind=bind)


@lowers("searchsorted")
def lower_searchsorted(cx: Lowering, node: Node) -> None:
    ins = [None if v is None else cx.dense(v) for v in (*node.inputs, None)[:3]]
    cx.call("effc_searchsorted", ins, [cx.out(node)], attrs=[int(node.attrs["right"])])


@lowers("histc")
def lower_histc(cx: Lowering, node: Node) -> None:
    cx.call("effc_histc", [cx.dense(node.operands[0])], [cx.out(node)], fattrs=[node.attrs["lo"], node.attrs["hi"]])


@lowers("histogram")
def lower_histogram(cx: Lowering, node: Node) -> None:
    cx.call("effc_histogram", [None if v is None else cx.dense(v) for v in node.inputs], [cx.out(node)])


@lowers("embedding_bag")
def lower_embedding_bag(cx: Lowering, node: Node) -> None:
    ins = [None if v is None else cx.dense(v) for v in (*node.inputs, None)[:4]]
    mode = {"sum": 0, "mean": 1, "max": 2}[node.attrs["mode"]]
    cx.call(
        "effc_embedding_bag",
        ins,
        [cx.out(node)],
        attrs=[mode, int(node.attrs["include_last_offset"]), node.attrs["padding_idx"]],
    )


@lowers("unique", "unique_consecutive")
def lower_unique(cx: Lowering, node: Node) -> None:
    x = cx.dense(node.operands[0])
    dyn, size, bind = open_size(cx, node)
    outs = [cx.out(node, 0, dyn=dyn), cx.out(node, 1), cx.out(node, 2, dyn=dyn)]
    keys = x.numel * (16 if x.dtype.itemsize == 8 else 8)
    cx.call("effc_unique", [x], outs, attrs=[int(node.op == "unique"), size], scratch=keys * 2 + 64, bind=bind)


@lowers("unique_dim")
def lower_unique_dim(cx: Lowering, node: Node) -> None:
    dim = node.attrs["dim"]
    x = cx.dense(node.operands[0])
    dyn, size, bind = open_size(cx, node)
    outs = [cx.out(node, 0, dyn=dyn), cx.out(node, 1), cx.out(node, 2, dyn=dyn)]
    attrs = [dim, int(not node.attrs["consecutive"]), size]
    cx.call("effc_unique_dim", [x], outs, attrs=attrs, scratch=x.shape[dim] * 8, bind=bind)
