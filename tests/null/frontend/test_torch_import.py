"""The torch frontend through the numpy interpreter, against eager: sizes, structure, state, control flow, promotion,
refusals.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.utils._pytree as pytree  # noqa: E402

from effc.frontend.torch import import_model  # noqa: E402
from effc.frontend.torch.dtypes import from_numpy, to_numpy  # noqa: E402
from effc.frontend.torch.export import export, is_functional  # noqa: E402
from effc.ir.interp import Interpreter  # noqa: E402
from effc.runtime.errors import EffcError  # noqa: E402
from effc.runtime.tree import bind_arguments, unflatten  # noqa: E402

DYNAMIC = torch.export.Dim.DYNAMIC


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def call(g: Any, *args: Any, interpreter: Interpreter | None = None, **kwargs: Any) -> Any:
    leaves = bind_arguments(g.in_tree, args, kwargs)
    arrays = [to_numpy(x) if isinstance(x, torch.Tensor) else np.asarray(x) for x in leaves]
    out = (interpreter or Interpreter()).run(g.graph, arrays)
    return unflatten(g.out_tree, out)


def same(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    a, b = pytree.tree_leaves(got), pytree.tree_leaves(want)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        if not isinstance(y, torch.Tensor):
            assert x == y and type(x) is type(y)
            continue
        y = to_numpy(y)
        assert x.dtype == y.dtype and x.shape == y.shape
        if x.dtype.kind in "biu":
            np.testing.assert_array_equal(x, y)
        elif x.size:
            wide = np.complex128 if x.dtype.kind == "c" else np.float64
            x, y = x.astype(wide), y.astype(wide)
            np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
            scale = np.nanmax(np.abs(y), initial=0)
            assert np.nanmax(np.abs(x - y), initial=0) <= tolerance * scale


def check(model: Any, *cases: tuple[Any, ...], dynamic_shapes: Any = None, tolerance: float = 1e-5) -> Any:
    """Imports with the first case's arguments and compares on every case; returns the import."""
    g = import_model(model, cases[0], dynamic_shapes=dynamic_shapes)
    for args in cases:
        same(call(g, *args), model(*args), tolerance)
    return g


def module(f: Any) -> torch.nn.Module:
    class M(torch.nn.Module):
        forward = staticmethod(f)

    return M()


# Sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [6, 1, 0])
def test_sizes_0_and_1_are_not_special(example):
    m = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.LayerNorm(5), torch.nn.GELU())
    cases = [(torch.randn(n, 3, 4),) for n in (example, 0, 1, 2, 7)]
    g = check(m, *cases, dynamic_shapes=({0: DYNAMIC},))
    assert not isinstance(g.graph.inputs[0].types[0].shape[0], int)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_convolution_does_not_ask_for_a_larger_batch(rank):
    """torch asks for the layout of the result, and for a channels-last input that depends on the batch."""
    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    m = kinds[rank - 1](8, 8, 3, padding=1, groups=8)
    chain = module(lambda x: m(x.movedim(-1, 1)).flatten(1))
    cases = [(torch.randn(n, *(5,) * rank, 8),) for n in (2, 1, 3)]
    g = check(chain, *cases, dynamic_shapes=({0: DYNAMIC},))
    assert all(low <= 1 for low, _ in g.graph.symbols.values())


def test_writing_into_a_strided_view_does_not_ask_for_larger_sizes():
    def f(x):
        y = torch.zeros(x.shape[0], x.shape[1], 6)
        y[..., ::2] = x
        return y

    cases = [(torch.randn(n, k, 3),) for n, k in ((2, 4), (1, 1), (1, 3), (3, 1))]
    g = check(module(f), *cases, dynamic_shapes=({0: DYNAMIC, 1: DYNAMIC},))
    assert all(low <= 1 for low, _ in g.graph.symbols.values())


def test_reshaping_an_expanded_tensor_does_not_ask_for_a_larger_batch():
    """As class tokens are; the two shapes are a view of the expanded tensor and a copy."""
    token = torch.randn(1, 1, 8)

    def f(x):
        y = token.expand(x.shape[0], -1, -1)
        return y.reshape(x.shape[0], 1, 2, 4) * 2, torch.cat([y.reshape(-1), x.reshape(-1)])

    cases = [(torch.randn(n, 3),) for n in (2, 1, 5)]
    g = check(module(f), *cases, dynamic_shapes=({0: DYNAMIC},))
    assert all(low <= 1 for low, _ in g.graph.symbols.values())


def test_size_arithmetic():
    def f(x):
        n = x.shape[0]
        return (
            x / n**0.5,
            torch.arange(n) * 2,
            torch.full((n, n // 2 + 1), n),
            x.reshape(-1, 2)[:n],
            x[-2:],
            x[:-1].sum(),
            n * 2 + 1,
        )

    check(module(f), *[(torch.randn(n, 4),) for n in (6, 3, 9)], dynamic_shapes=({0: DYNAMIC},))


def test_a_float_of_a_size_becomes_a_size():
    def f(x):
        return torch.nn.functional.interpolate(x[None, None], scale_factor=1.7)

    check(module(f), *[(torch.randn(n, 4),) for n in (6, 3, 9, 10)], dynamic_shapes=({0: DYNAMIC},))


def test_bounds_of_a_named_dim_are_kept():
    n = torch.export.Dim("n", min=2, max=9)
    g = import_model(module(lambda x: x * 2), (torch.randn(4),), dynamic_shapes=({0: n},))
    assert list(g.graph.symbols.values()) == [(2, 9)]
    with pytest.raises(EffcError, match="bounds"):
        call(g, torch.randn(10))


def test_a_condition_on_sizes_is_checked_not_forgotten():
    def f(x):
        return x + 1 if x.shape[0] % 2 == 0 else x - 1

    g = import_model(module(f), (torch.randn(4),), dynamic_shapes=({0: DYNAMIC},))
    same(call(g, torch.arange(6.0)), torch.arange(6.0) + 1)
    with pytest.raises(EffcError, match="shape"):
        call(g, torch.randn(5))


def test_equal_sizes_are_checked():
    g = import_model(
        module(lambda x, y: x + y), (torch.randn(4), torch.randn(4)), dynamic_shapes=({0: DYNAMIC}, {0: DYNAMIC})
    )
    same(call(g, torch.ones(3), torch.ones(3)), torch.full((3,), 2.0))
    with pytest.raises(EffcError):
        call(g, torch.ones(3), torch.ones(5))


def test_data_dependent_sizes():
    def f(x):
        k = x.sum().long().item()
        torch._check(k >= 0)
        torch._check(k < 50)
        return torch.zeros(k) + 1, torch.nonzero(x), x[x > 1], x.masked_select(x > 0).cumsum(0)

    cases = [(torch.tensor([1.0, 0, 2.5, 0]),), (torch.tensor([3.0, 2.0]),), (torch.zeros(3),), (torch.zeros(0),)]
    g = check(module(f), *cases, dynamic_shapes=({0: DYNAMIC},))
    with pytest.raises(EffcError):
        call(g, torch.tensor([70.0]))


def test_a_cache_written_at_a_position():
    class Cache(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("k", torch.zeros(1, 2, 16, 4))

        def forward(self, x, p: int):
            torch._check(p + x.shape[2] <= 16)
            self.k[:, :, p : p + x.shape[2]] = x
            seen = self.k[:, :, : p + x.shape[2]]
            return torch.nn.functional.scaled_dot_product_attention(x, seen, seen)

    m = Cache()
    g = import_model(m, (torch.randn(1, 2, 3, 4), 2), dynamic_shapes=({2: DYNAMIC}, DYNAMIC))
    state, p = Interpreter(), 0
    for n in (3, 2, 5):
        x = torch.randn(1, 2, n, 4)
        same(call(g, x, p, interpreter=state), m(x, p))
        p += n
    same(state.states["k"], m.k)


def test_integer_arguments():
    g = import_model(
        module(lambda x, n: (x.new_ones(n) * n, n + 1, x * n)), (torch.randn(3), 4), dynamic_shapes=(None, DYNAMIC)
    )
    for n in (4, 1, 0, 7):
        x = torch.randn(3)
        same(call(g, x, n), (x.new_ones(n) * n, n + 1, x * n))


# Structure -----------------------------------------------------------------------------------------------------------

Pair = collections.namedtuple("Pair", "left right")


@dataclasses.dataclass
class Box:
    a: Any
    b: Any


torch.export.register_dataclass(Box)


class Structured(torch.nn.Module):
    def forward(self, x, opts, *, scale=None, mode="plain"):
        y = x * opts["k"] if scale is None else x * scale
        return {"pair": Pair(y, [y + 1, None]), "box": Box(y.sum(), 3), "mode": mode, "rows": x.shape[0]}


def test_trees_in_and_out():
    m = Structured()
    args, kwargs = (torch.randn(2, 3), {"k": torch.randn(3)}), {"scale": torch.tensor(2.0), "mode": "plain"}
    g = import_model(m, args, kwargs)
    got = call(g, *args, **kwargs)
    assert type(got["pair"]) is Pair and type(got["box"]) is Box and got["mode"] == "plain" and got["rows"] == 2
    assert got["pair"].right[1] is None
    same([got["pair"].left, got["box"].a], [args[0] * 2, (args[0] * 2).sum()])
    with pytest.raises(EffcError, match="mode"):
        call(g, *args, scale=torch.tensor(2.0), mode="other")


def test_struct_sequences_keep_their_class():
    g = import_model(module(lambda x: torch.sort(x)), (torch.randn(5),))
    assert type(call(g, torch.randn(5))) is torch.return_types.sort


def test_unused_and_passed_through_arguments():
    g = import_model(module(lambda x, y: (y, x, x)), (torch.randn(2), torch.arange(3)))
    same(call(g, torch.ones(2), torch.arange(3)), (torch.arange(3), torch.ones(2), torch.ones(2)))


# State ---------------------------------------------------------------------------------------------------------------


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(3))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        self.n[1:].add_(x[1:])
        self.steps += 1
        return self.n * self.steps


def test_buffers_are_states():
    m = Counter()
    g = import_model(m, (torch.ones(3),))
    assert set(g.graph.states) == {"n", "steps"}
    one, other = Interpreter(), Interpreter()
    for _ in range(3):
        x = torch.randn(3)
        same(call(g, x, interpreter=one), m(x))
    same(call(g, torch.ones(3), interpreter=other), Counter()(torch.ones(3)))


def test_batch_norm_in_training_updates_its_statistics():
    torch.manual_seed(0)
    m = torch.nn.BatchNorm1d(4)
    g = import_model(m, (torch.randn(5, 4),))
    state = Interpreter()
    for _ in range(3):
        x = torch.randn(5, 4)
        same(call(g, x, interpreter=state), m(x))
    same(state.states["running_var"], m.running_var)
    same(state.states["num_batches_tracked"], m.num_batches_tracked)


def test_batch_norm_without_statistics_needs_no_decomposition():
    """As convolutions with standardised weights use it: a second trace of the program took most of the import."""
    m = module(lambda x: torch.nn.functional.batch_norm(x, None, None, training=True, momentum=0.0))
    x = torch.randn(5, 4)
    assert is_functional(export(m, (x,), None, None).graph_module)
    same(call(import_model(m, (x,)), x), m(x))


def test_mutated_inputs_are_written_back():
    def f(x, y):
        x.mul_(2)
        x[0] = y
        return x + 1

    g = import_model(module(f), (torch.ones(3, 2), torch.zeros(2)))
    x = torch.randn(3, 2)
    want = x.clone()
    result = f(want, torch.ones(2))
    array = x.numpy().copy()
    got = Interpreter().run(g.graph, [array, np.ones(2, np.float32)])
    same(got, [result])
    same(array, want)


def test_tied_weights_are_one_constant():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.e = torch.nn.Embedding(11, 6)
            self.out = torch.nn.Linear(6, 11, bias=False)
            self.out.weight = self.e.weight

        def forward(self, i):
            return self.out(self.e(i))

    g = check(Tied(), (torch.randint(0, 11, (2, 3)),))
    assert sum(n.op == "constant" and n.attrs["data"].size == 66 for n in g.graph.nodes) == 1


def test_weights_of_every_storage():
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.float8_e4m3fn):
        t = torch.randn(3, 4).to(dtype)
        back = from_numpy(to_numpy(t), dtype)
        assert back.dtype is dtype and torch.equal(
            back.view(torch.uint8) if t.element_size() == 1 else back,
            t.view(torch.uint8) if t.element_size() == 1 else t,
        )


# Control flow --------------------------------------------------------------------------------------------------------


def test_cond():
    class M(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.randn(4))

        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x * self.w + 1, lambda x: x.sin() - self.w, (x,))

    check(M(), (torch.ones(3, 4),), (-torch.ones(1, 4),), dynamic_shapes=({0: DYNAMIC},))


def test_cond_on_a_size():
    def f(x):
        return torch.cond(x.shape[0] > 4, lambda x: x + 1, lambda x: x - 1, (x,))

    check(module(f), (torch.ones(3, 4),), (torch.ones(7, 4),), dynamic_shapes=({0: DYNAMIC},))


def test_while_loop():
    from torch._higher_order_ops.while_loop import while_loop

    def f(i, x):
        return while_loop(lambda i, x: i < 5, lambda i, x: (i + 1, x * 1.5 + i), (i, x))

    check(
        module(f),
        (torch.tensor(0), torch.randn(3)),
        (torch.tensor(4), torch.randn(3)),
        (torch.tensor(9), torch.randn(3)),
    )


@pytest.mark.parametrize(("dim", "reverse"), [(0, False), (1, True)])
def test_scan(dim, reverse):
    from torch._higher_order_ops.scan import scan

    def f(init, xs):
        def step(c, x):
            y = c * 0.9 + x
            return y, y.tanh()

        return scan(step, init, xs, dim=dim, reverse=reverse)

    shape = (5, 4) if dim == 0 else (4, 5)
    check(module(f), (torch.randn(4), torch.randn(shape)))


def test_scan_of_dynamic_length():
    from torch._higher_order_ops.scan import scan

    def f(init, xs):
        return scan(lambda c, x: (c + x, (c * x).clone()), init, xs)

    cases = [(torch.randn(4), torch.randn(n, 4)) for n in (5, 2, 1)]
    check(module(f), *cases, dynamic_shapes=(None, {0: DYNAMIC}))


def test_associative_scan():
    from torch._higher_order_ops.associative_scan import associative_scan

    def f(a, b):
        return associative_scan(lambda x, y: (x[0] * y[0], x[1] * y[0] + y[1]), (a, b), dim=1, combine_mode="generic")

    check(module(f), (torch.rand(2, 5, 3), torch.rand(2, 5, 3)))


def test_map_and_wrappers():
    from torch._higher_order_ops.map import map as torch_map

    def f(xs, y):
        with torch.enable_grad():
            z = torch_map(lambda x, y: x * y + 1, xs, y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return z.exp()

    check(module(f), (torch.randn(5, 4), torch.randn(4)))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (torch.nn.LSTM, {}),
        (torch.nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        (torch.nn.LSTM, {"proj_size": 3}),
        (torch.nn.GRU, {"num_layers": 2, "bidirectional": True, "bias": False}),
        (torch.nn.RNN, {"nonlinearity": "relu"}),
    ],
)
@pytest.mark.parametrize("batched", [True, False])
def test_recurrent_layers_of_dynamic_length(cls, options, batched):
    torch.manual_seed(1)
    m = cls(4, 6, **options).eval()
    shapes = [(5, 3, 4), (2, 1, 4)] if batched else [(5, 4), (1, 4)]
    g = check(
        m, *[(torch.randn(s),) for s in shapes], dynamic_shapes=({0: DYNAMIC, 1: DYNAMIC} if batched else {0: DYNAMIC},)
    )
    assert any(n.op.endswith("_layer") for n in g.graph.nodes)


# Promotion -----------------------------------------------------------------------------------------------------------

DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
)


def sample(dtype: Any, shape: tuple[int, ...]) -> Any:
    if dtype is torch.bool:
        return torch.rand(shape) < 0.5
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    return torch.randint(1, 9, shape).to(dtype)


@pytest.mark.parametrize("left", DTYPES, ids=str)
@pytest.mark.parametrize("right", [*DTYPES, 2, 2.5, True, 1j], ids=str)
def test_promotion(left, right):
    def make(shape):
        return sample(right, shape) if isinstance(right, torch.dtype) else right

    def f(x, y):
        return x * y, x + y, x == y, torch.where(x == y, x, y)

    tolerance = 2e-2 if torch.bfloat16 in (left, right) else 4e-3 if torch.float16 in (left, right) else 1e-5
    for x, y in [(sample(left, (3, 4)), make((4,))), (sample(left, (2,)), make(())), (sample(left, ()), make((2,)))]:
        if isinstance(y, torch.Tensor):
            check(module(f), (x, y), tolerance=tolerance)
        else:
            check(module(lambda x, y=y: f(x, y)), (x,), tolerance=tolerance)


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_integers_become_floats_where_torch_says_so(dtype):
    x = sample(dtype, (3, 4))
    tolerance = 2e-2 if dtype is torch.bfloat16 else 4e-3 if dtype is torch.float16 else 1e-5
    check(
        module(lambda x: (x / 2, x.exp(), x.sum(), x.float().mean(), x.amax(), x.cumsum(0))), (x,), tolerance=tolerance
    )


def test_sums_and_products_in_bool():
    """Any and all: torch.prod of op_db asks for dtype=torch.bool."""

    def f(x):
        d = torch.bool
        return x.sum(dtype=d), x.sum(1, dtype=d), x.prod(dtype=d), x.prod(0, True, dtype=d), x.nansum(1, dtype=d)

    check(module(f), (torch.tensor([[True, False, True], [False, False, False]]),))
    check(module(f), (torch.tensor([[0.0, 0.25, 2.0], [0.0, 0.0, -1.0]]),))


def test_scaled_sums_of_bool():
    """x or (alpha and y); a false alpha still broadcasts to y's shape."""
    x, y = torch.tensor([[True], [False]]), torch.tensor([True, False, True])
    for alpha in (True, False):
        check(module(lambda x, y, alpha=alpha: (torch.add(x, y, alpha=alpha), torch.add(x, True, alpha=alpha))), (x, y))


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [False, True])
def test_bicubic_sampling_in_bfloat16_is_near_float64(padding, align):
    """Eager rounds every weight and partial sum to bfloat16 and is off by a tenth; effc rounds the result alone."""

    def f(x, grid):
        return torch.nn.functional.grid_sample(x, grid, "bicubic", padding, align)

    x, grid = (torch.randn(s, dtype=torch.bfloat16) for s in ((2, 3, 5, 6), (2, 4, 5, 2)))
    g = import_model(torch.export.export(module(f), (x, grid), strict=False))
    same(call(g, x, grid), f(x.double(), grid.double()).to(torch.bfloat16), 8e-3)


# Refusals and places -------------------------------------------------------------------------------------------------


def test_all_that_is_not_supported_is_listed_at_once():
    def f(x):
        a = torch.ops.effc_test.even(x)
        b = torch.ops.effc_test.even(x + 1)
        return a, b, torch.ops.effc_test.odd(x)

    library = torch.library.Library("effc_test", "FRAGMENT")
    for name in ("odd", "even"):
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, lambda x: x.clone(), "CompositeExplicitAutograd")
    with pytest.raises(EffcError) as e:
        import_model(module(f), (torch.randn(4),))
    library._destroy()
    text = str(e.value)
    assert "effc_test.even" in text and "2 uses" in text and "effc_test.odd" in text and "test_torch_import.py" in text


def test_source_lines_stay_on_nodes():
    def f(x):
        y = x.exp()
        return y.tanh()

    g = import_model(module(f), (torch.randn(3),))
    places = {n.op: n.loc for n in g.graph.nodes}
    assert places["exp"].file.endswith("test_torch_import.py") and "x.exp()" in places["exp"].code
    assert places["tanh"].line == places["exp"].line + 1


def test_module_paths_stay_on_nodes():
    m = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Sequential(torch.nn.Linear(3, 2)))
    g = import_model(m, (torch.randn(1, 3),))
    assert [n.loc.module for n in g.graph.nodes if n.op == "matmul"] == ["0", "1.0"]


def test_what_is_no_model():
    with pytest.raises(EffcError, match="cannot compile a int"):
        import_model(3, ())
    with pytest.raises(EffcError, match=r"torch\.export refuses"):
        import_model(module(lambda x: x if x.sum() > 0 else -x), (torch.randn(3),))


def test_exported_programs_and_files(tmp_path):
    m = torch.nn.Linear(3, 2)
    ep = torch.export.export(m, (torch.randn(4, 3),))
    x = torch.randn(4, 3)
    same(call(import_model(ep), x), m(x))
    path = tmp_path / "m.pt2"
    torch.export.save(ep, path)
    same(call(import_model(path), x), m(x))
    path.write_bytes(b"nothing")
    with pytest.raises(EffcError, match="not an exported program"):
        import_model(path)
