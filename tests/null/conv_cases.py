"""Calls the convolution kernels on numpy arrays, for tests and bench/conv.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from kernel_harness import KernelLibrary

from effc.backends.cpu.packing import conv as packing
from effc.backends.cpu.packing import winograd

Array = np.ndarray[Any, Any]


def aligned(a: Array) -> Array:
    """A copy of dense data that starts at a multiple of 64 bytes, as the runtime's storage does."""
    room = np.empty(a.nbytes + 64, np.uint8)
    skip = -room.ctypes.data % 64
    out = room[skip : skip + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def channels_last(x: Array) -> Array:
    """The same values with the channels innermost in memory."""
    return np.moveaxis(aligned(np.moveaxis(x, 1, -1)), -1, 1)


def one_line(x: Array) -> bool:
    """Pixels follow each other at equal distances, their channels innermost: as lower/conv.py finds it."""
    want = x.strides[-1]
    for i in (*range(x.ndim - 1, 1, -1), 0):
        if x.shape[i] != 1 and x.strides[i] != want:
            return False
        want *= x.shape[i]
    return x.strides[1] == x.itemsize or x.shape[1] == 1


def out_size(size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    return (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1


def transposed_size(size: int, kernel: int, stride: int, pad: int, dilation: int, extra: int) -> int:
    return (size - 1) * stride - 2 * pad + dilation * (kernel - 1) + extra + 1


def run_conv(
    lib: KernelLibrary,
    x: Array,
    w: Array,
    stride: Sequence[int],
    pad: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *,
    transposed: bool = False,
    output_padding: Sequence[int] | None = None,
    packed: bool = True,
    copy: bool = False,
    kernel: str | None = None,
    out_dtype: Any = None,
    extras: Sequence[Array] = (),
    epilogue: str | None = None,
    depthwise: bool | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    clamp: tuple[float, float] | None = None,
    scale: Array | None = None,
    scratch_override: tuple[int, int] | None = None,
    blocking: tuple[int, int, int, int] | None = None,
    result: Array | None = None,
    **call: Any,
) -> Array:
    """The convolution of x [N, C, *S] with w, shaped [N, O, *out]. Threads by default: two, real ones. ``result``
    (N, 1, pixels, O): where it goes."""
    nd = x.ndim - 2
    ks = w.shape[2:]

    def three(values: Sequence[int], fill: int) -> list[int]:
        return [fill] * (3 - nd) + [int(v) for v in values]

    if transposed:
        extra = output_padding or [0] * nd
        out = [transposed_size(x.shape[2 + d], ks[d], stride[d], pad[d], dilation[d], extra[d]) for d in range(nd)]
        oc, cg = w.shape[1] * groups, w.shape[0] // groups
    else:
        out = [out_size(x.shape[2 + d], ks[d], stride[d], pad[d], dilation[d]) for d in range(nd)]
        oc, cg = w.shape[0], w.shape[1]
    out_dtype = np.dtype(out_dtype or x.dtype)
    compute = packing.compute_dtype(w.dtype)
    taps = int(np.prod(ks))
    direct = epilogue is None and out_dtype == compute
    if depthwise is None:
        depthwise = cg == 1 and groups > 1 and not transposed and compute.kind == "f"
    if depthwise:
        copy = copy or oc != groups or (x.strides[1] != x.itemsize and x.shape[1] != 1) or x.dtype != compute
        elems = x.size * (oc // groups) if copy else 0
        sizes = (oc, taps, compute.itemsize)
        blocks = packing.depthwise_blocks(*sizes, packed=packed, copy_elems=elems, direct=direct)
        wp = packing.pack_depthwise(w) if packed else w
    else:
        copy = copy or x.dtype != compute
        inner = copy or x.strides[1] == x.itemsize or x.shape[1] == 1
        share = 1
        if packed and inner and not transposed:
            share = packing.sharing(groups, cg, oc // groups, taps, lib.vlen // compute.itemsize)
        shape = packing.Shape(
            oc // groups * share, cg, groups // share, taps, compute.itemsize, lib.vlen, inner, packed,
            x.size if copy else 0, pixels=x.shape[0] * int(np.prod(out)), direct=direct,
            lines=taps == 1 and not transposed and not any(pad) and set(stride) == {1} and (copy or one_line(x)),
            share=share,
            scaled=scale is not None,
        )  # fmt: skip
        blocks = shape.rule() if blocking is None else shape.blocks(*blocking)
        wp = packing.pack_conv(w, groups // share, lib.vlen, transposed=transposed, nv=blocks.nv) if packed else w
    pixels = int(np.prod(out))
    if result is None:
        result = aligned(np.full((x.shape[0], 1, pixels, oc), 77, out_dtype))
    if packed:
        wp = aligned(wp)
    attrs = [int(packed), int(transposed), int(copy), groups, oc]
    attrs += three(ks, 1) + three(stride, 1) + three(pad, 0) + three(dilation, 1) + three(out, 1) + blocks.attrs
    attrs.append((bias is not None) + 2 * (residual is not None) + 4 * (clamp is not None) + 16 * (scale is not None))
    steps = [a for a in (bias, residual, scale) if a is not None]
    scratch = scratch_override or (blocks.scratch, blocks.thread_scratch)
    call = {"threads": 2, "mode": "threads", **call}
    suffix = {"f": f"f{8 * compute.itemsize}", "c": "complex"}.get(compute.kind, "int")
    kernel = kernel or f"effc_conv_{'dw_' if depthwise else ''}{suffix}"
    lib.call(
        kernel, [x, wp, *steps, *extras], [result], attrs=attrs, scratch=scratch[0], thread_scratch=scratch[1],
        n_own=2 + len(steps), epilogue=epilogue,
        fattrs=list(clamp or ()), **call,
    )  # fmt: skip
    return np.moveaxis(result.reshape(x.shape[0], *out, oc), -1, 1)


def depth_of(w: Array, size: Sequence[int], stride: int) -> winograd.Depth:
    """What lower/conv_winograd.py says of windows w [O, C, (K,) 3, 3] and a result of ``size``."""
    return winograd.Depth(w.shape[2], stride, size[0]) if w.ndim == 5 else winograd.FLAT


def run_winograd(
    lib: KernelLibrary,
    x: Array,
    w: Array,
    pad: Sequence[int],
    tile: int,
    *,
    stride: int = 1,
    depth_stride: int = 1,
    blocking: winograd.Blocks | None = None,
    packed: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    clamp: tuple[float, float] | None = None,
    extras: Sequence[Array] = (),
    epilogue: str | None = None,
    **call: Any,
) -> Array:
    """The convolution of x [N, C, (D,) H, W], channels innermost in memory, with w [O, C, (K,) 3, 3] by Winograd's
    algorithm, shaped [N, O, *out]. ``packed``: the weights, if they are packed already."""
    n, c = x.shape[:2]
    strides = [depth_stride, stride, stride][5 - x.ndim :]
    o, size = w.shape[0], [out_size(*s, 1) for s in zip(x.shape[2:], w.shape[2:], strides, pad)]
    tiles = n * int(np.prod([*size[:-2], *(-(-s // tile) for s in size[-2:])]))
    blocks = blocking or winograd.rule(c, o, tile, lib.vlen, tiles, stride, depth_of(w, size, depth_stride))
    result = aligned(np.full((n, 1, int(np.prod(size)), o), 77, np.float32))
    taps, sizes, pad = (list(v) if x.ndim == 5 else [fill, *v] for v, fill in ((w.shape[2:], 1), (size, 1), (pad, 0)))
    attrs = [1, 0, 0, 1, o, *taps, depth_stride, stride, stride, *pad, 1, 1, 1, *sizes, *blocks.attrs]
    attrs += [(bias is not None) + 2 * (residual is not None) + 4 * (clamp is not None), *blocks.more]
    steps = [a for a in (bias, residual) if a is not None]
    packed = aligned(winograd.pack(w, tile, lib.vlen, blocks.nv, stride)) if packed is None else packed
    lib.call(
        "effc_conv_winograd_f32", [x, packed, *steps, *extras], [result], attrs=attrs, scratch=blocks.scratch,
        thread_scratch=blocks.thread_scratch, n_own=2 + len(steps), epilogue=epilogue, fattrs=list(clamp or ()),
        **{"threads": 2, "mode": "threads", **call},
    )  # fmt: skip
    return np.moveaxis(result.reshape(n, *size, o), -1, 1)
