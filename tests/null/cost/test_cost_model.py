"""The cost model's parts: records, trees, features, training, predictions, choices."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cost_calls import MACHINE, conv_call, conv_ways, made_up, map_call

from effc.cost import alternatives, records, train
from effc.cost import model as cost_model
from effc.cost.calls import Call, Tensor, calls, dense_tensor, footprint
from effc.cost.features import FAMILIES, amounts, family_of, shares
from effc.cost.machine import Machine
from effc.cost.roofline import Context, estimate, floor, operations, taps_inside
from effc.cost.trees import Trees
from effc.runtime.errors import EffcError

CX = Context(MACHINE, 32, 1, 1 << 20)


@pytest.fixture(scope="module")
def learned() -> cost_model.CostModel:
    pytest.importorskip("lightgbm")
    return train.fit(made_up(), rounds=60)


# Records --------------------------------------------------------------------------------------------------------------


def test_records_survive_a_cut_and_are_appended_to(tmp_path: Path) -> None:
    file, made = tmp_path / "r.jsonl", made_up(3)
    w = records.Writer(file)
    w.add([r for r in made if r.group == "c0"])
    w.close()
    with open(file, "a") as f:
        f.write('{"family":"conv","thre')  # the process was killed here
    w = records.Writer(file)
    assert w.groups == {"c0"}
    w.add([r for r in made if r.group == "m1"])
    back = records.read([file])
    assert [r.group for r in back] == ["c0"] * 7 + ["m1"]
    first = next(r for r in made if r.group == "c0")
    assert back[0].call.attrs == first.call.attrs and back[0].machine == MACHINE
    assert back[0].kernels == "" and not back[0].stale
    other = dataclasses.replace(first, kernels="0123abcd", stale=True, group="later")
    w.add([other])
    w.close()
    assert (records.read([file])[-1].kernels, records.read([file])[-1].stale) == ("0123abcd", True)
    assert back[0].seconds == pytest.approx(first.seconds, rel=1e-4)
    assert sum('"cpu":' in line for line in file.read_text().splitlines()) == 1  # the machine is described once
    # what features read is all there
    for r, original in zip(back, [r for r in made if r.group in ("c0", "m1")], strict=True):
        f = FAMILIES[r.family].features
        assert f(r.call, CX) == f(original.call, CX)


def test_a_record_of_an_unknown_machine_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps({**made_up(1)[0].as_json(), "machine": "nobody"}) + "\n")
    with pytest.raises(EffcError, match="nobody"):
        records.read([file])


# Trees ----------------------------------------------------------------------------------------------------------------


def test_trees_are_lightgbms_own() -> None:
    lgb = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 5))
    x[:, 2] = rng.integers(0, 4, 400)
    y = np.sin(x[:, 0]) + (x[:, 2] > 1) * x[:, 1] + 0.1 * rng.standard_normal(400)
    booster = lgb.train(dict(train.PARAMETERS), lgb.Dataset(x, y), 50)
    trees = Trees.from_text(booster.model_to_string())
    more = np.concatenate([x, rng.standard_normal((400, 5)) * 3, trees.threshold[: 80 - 80 % 5].reshape(-1, 5)])
    taken = booster.predict(more, pred_leaf=True)
    leaves = np.array([[booster.get_leaf_output(t, int(leaf)) for t, leaf in enumerate(row)] for row in taken])
    np.testing.assert_allclose(leaves.sum(1), booster.predict(more), rtol=0, atol=1e-9)
    np.testing.assert_allclose(trees(more), leaves.astype(np.float16).astype(float).sum(1), rtol=0, atol=1e-9)
    again = Trees.from_arrays(trees.arrays("a"), "a")
    np.testing.assert_array_equal(again(more), trees(more))


def test_trees_cut_down_to_what_differs_predict_the_same() -> None:
    lgb = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((600, 7))
    y = np.sin(x[:, 0]) * x[:, 3] + (x[:, 5] > 0)
    trees = Trees.from_text(lgb.train(dict(train.PARAMETERS), lgb.Dataset(x, y), 40).model_to_string())
    for free in ([], [0], [0, 3], [1, 2, 4, 6], list(range(7))):
        rows = np.repeat(x[:1], 50, 0)
        rows[:, free] = x[1:51][:, free]
        np.testing.assert_allclose(trees(rows), trees._sum(rows), rtol=0, atol=1e-12)
        known = np.array([i not in free for i in range(7)])
        left = trees.given(rows[0], known)
        assert not set(left.feature[left.children[left.children >= 0]]) & set(np.flatnonzero(known))
        assert (len(left.roots) == 0) == (not free)


def test_trees_of_two_ensembles_add_up() -> None:
    lgb = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(2)
    x = rng.standard_normal((300, 4))
    one, two = (
        Trees.from_text(lgb.train(dict(train.PARAMETERS), lgb.Dataset(x, y), n).model_to_string())
        for y, n in ((x[:, 0] * x[:, 1], 20), (np.abs(x[:, 2]), 7))
    )
    none = Trees.from_text("tree\n\nTree=0\nnum_leaves=1\nnum_cat=0\nsplit_feature=\nleaf_value=0.5\n\n")
    np.testing.assert_allclose(one.and_also(two)(x), one(x) + two(x), rtol=0, atol=1e-12)
    np.testing.assert_allclose(none.and_also(two).and_also(none)(x), two(x) + 1, rtol=0, atol=1e-12)
    assert len(one.and_also(two).roots) == 27


def test_a_tree_without_a_split() -> None:
    one = "num_leaves=1\nnum_cat=0\nsplit_feature=\nleaf_value={}\n\n"
    trees = Trees.from_text("tree\n\nTree=0\n" + one.format(0.5) + "\nTree=1\n" + one.format(0.25))
    np.testing.assert_array_equal(trees(np.zeros((3, 2))), [0.75] * 3)
    with pytest.raises(ValueError, match="missing"):
        Trees.from_text("\nTree=0\nnum_leaves=2\ndecision_type=10\nleaf_value=1 2\nleft_child=-1\nright_child=-2\n\n")


def test_records_of_other_vectors_teach_times_and_nothing_else() -> None:
    """Few records of a machine with wider vectors, after many of the other: its own error, no ranks without enough."""
    pytest.importorskip("lightgbm")
    wide = dataclasses.replace(MACHINE, vector_bytes=64)
    own = [
        dataclasses.replace(r, target="cpu:x86-64-v4", machine=wide, group=f"w{r.group}", seconds=2 * r.seconds)
        for r in made_up(5, seed=1)
    ]
    model = train.fit([*made_up(), *own], rounds=60)
    assert model.target == "cpu:x86-64-v4" and model.machine == wide
    assert set(model.families) == {"conv"}  # of loops there are five of its own, fewer than train.OWN
    assert not model.families["conv"].rankers
    ranges = model.families["conv"].ranges
    assert ranges and train.fit(made_up(), rounds=5).families["conv"].ranges != ranges


def test_few_records_of_a_changed_kernel_correct_what_stale_ones_say() -> None:
    """Of a kernel that has become a third faster: the difference is learned, what stale records know of shapes stays,
    and the error is that of the present ones."""
    pytest.importorskip("lightgbm")

    def convolutions(groups: int, seed: int, faster: float, **more: Any) -> list[records.Record]:
        made = [r for r in made_up(groups, seed) if r.family == "conv"]
        shape = [np.log([*r.call.ins[0].shape[1:3], r.call.attrs[4]]) @ (0.3, -0.25, 0.2) for r in made]  # type: ignore[union-attr]
        return [
            dataclasses.replace(r, seconds=r.seconds * float(np.exp(s)) / faster, group=f"{seed}{r.group}", **more)
            for r, s in zip(made, shape, strict=True)
        ]

    stale, fresh = convolutions(120, 0, 1, stale=True), convolutions(10, 5, 1.5, kernels="new")
    t = train.Table(convolutions(30, 9, 1.5))

    def off(model: train.FamilyModel) -> float:
        return float(np.abs(np.log(t.floor) + model.log_ratio(t.x)[0] - np.log(t.seconds)).mean())

    both, old, new = (train.fit_family(rs, rounds=120) for rs in ([*stale, *fresh], stale, fresh))
    assert off(both) < 0.06 and off(both) < 0.6 * off(new) and off(old) > 0.35
    assert both.error < 0.12 and both.rankers and both.rank_error < cost_model.NEVER


def test_many_present_records_are_not_held_back_by_stale_ones() -> None:
    """Stale records that are few beside the present ones are left out; beside many, the present ones' trees are as many
    and as large as any."""
    pytest.importorskip("lightgbm")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1200, 4))
    y, w = np.sin(3 * x[:, 0]) * x[:, 1], np.ones(1200)
    few, many = (np.arange(1200) < n for n in (100, 600))
    alone = train.grow(x[~few], y[~few], w[~few], 60)
    np.testing.assert_array_equal(train.grow_on(x, y + few, w, few, 60)(x), alone(x))
    both = train.grow_on(x, y + many, w, many, 60)
    assert len(both.roots) == 120 and len(both.value) > 1.8 * len(alone.value)
    assert np.abs(both(x) - y)[~many].mean() < 0.5 * np.abs(y[~many]).mean()


def test_a_yardstick_is_compared_with_those_of_the_same_kernels() -> None:
    r = made_up(1)[0]
    made = [dataclasses.replace(r, yard=y, kernels=k) for k, s in (("", 1.0), ("x", 0.5)) for y in (s, s, 2 * s)]
    np.testing.assert_allclose(train.paces(made), np.log([1, 1, 2, 1, 1, 2]), atol=1e-12)


# Roofline and features ------------------------------------------------------------------------------------------------


def test_floor_counts_only_taps_inside_the_image() -> None:
    c = conv_call(8, 8, 2, 3, [1, 10, 8, 72])
    assert taps_inside(c) == pytest.approx((4 / 6) ** 2)  # of 3 taps, each of 2 pixels has 2 inside
    want = sum(
        1 for oy in range(2) for ox in range(2) for ky in range(3) for kx in range(3)
        if 0 <= oy + ky - 1 < 2 and 0 <= ox + kx - 1 < 2
    )  # fmt: skip
    assert operations(c) == pytest.approx(2 * 8 * 8 * want)


def test_floor_and_guess() -> None:
    c = map_call(1 << 12, 1 << 12)
    far = Context(MACHINE, 32, 1, 1 << 30)
    assert floor(c, far) == floor(c, CX) == pytest.approx(3 * 4 * 2**24 / 200e9)
    assert 2 * 3 * 4 * 2**24 / 10e9 <= estimate(c, far) and floor(c, CX) <= estimate(c, CX)
    assert floor(c, Context(MACHINE, 32, 2, 1 << 30)) < floor(c, far)


def test_amounts_of_work() -> None:
    """In seconds at the peak, as often as the busiest thread has them; bytes again by where they come from."""
    c = conv_call(64, 96, 14, 3, [2, 6, 32, 64])
    family = FAMILIES["conv"]
    for threads, between in ((1, 1 << 10), (2, 1 << 22), (2, 1 << 26)):
        cx = Context(MACHINE, 32, threads, between)
        f = family.features(c, cx)
        got = amounts(family, list(f), np.array([list(f.values())]))[0]
        assert len(got) == family.parts == 4 + len(family.work) + 5 and (got >= 0).all() and np.isfinite(got).all()
        peak, busiest = MACHINE.peak(threads), max(1.0, f["even"])
        assert got[0] == pytest.approx(operations(c) / peak * busiest)
        near, second, far, once, woken = got[-5:]
        assert near == pytest.approx(c.bytes / peak * busiest) and once == 1e-9
        assert second == (near if between > MACHINE.l2 else 0) and woken == (1e-9 if threads > 1 else 0)
        assert far == pytest.approx(c.bytes / MACHINE.bandwidth(threads) if between > MACHINE.l3 else 0)
    for x in FAMILIES.values():
        assert all(len(names) == len(set(names)) for names in x.work)


def test_a_sum_of_work_is_learned_and_holds_beyond_what_was_measured() -> None:
    pytest.importorskip("lightgbm")

    def seconds(c: Call) -> float:
        return 3e-6 + 2.5 * c.bytes / MACHINE.peak(1)

    made = []
    for i, rows in enumerate(np.exp(np.random.default_rng(0).uniform(0, np.log(2000), 150)).astype(int)):
        c = map_call(int(rows), 64)
        made.append(
            records.Record(c, "map", 1, c.bytes, seconds(c), 0.01, 1e-4, 0.0, f"m{i}", 0, "space", "cpu:x86-64-v3",
                           MACHINE)
        )  # fmt: skip
    model = train.fit(made, rounds=100)
    for rows, within in ((3, 0.03), (300, 0.03), (1500, 0.03), (6000, 0.05), (20000, 0.05)):
        c = map_call(rows, 64)
        p = model.predict(c, Context(MACHINE, 32, 1, c.bytes))
        assert p.source == "model" and p.seconds == pytest.approx(seconds(c), rel=within), rows
    family, c = model.families["map"], map_call(300, 64)
    x = np.array([[*FAMILIES["map"].features(c, Context(MACHINE, 32, 1, c.bytes)).values(), 0.0]])
    base, seen = family.by_work(x)
    assert np.exp(base[0]) * floor(c, CX) == pytest.approx(seconds(c), rel=0.05)  # the sum is nearly all there is
    shares = seen[0, x.shape[1] + 1 :]
    assert len(shares) == np.count_nonzero(family.rates) and shares.sum() == pytest.approx(1)
    assert 2 ** seen[0, x.shape[1]] == pytest.approx(seconds(c) * 1e9, rel=0.05)


def test_machine_between_and_beyond_measured_threads() -> None:
    assert MACHINE.peak(1) == 100e9 and MACHINE.peak(2) == MACHINE.peak(8) == 180e9
    wide = Machine("b", 8, 1, 1, 1, 32, ((1, 10.0), (4, 40.0)), ((1, 1.0),))
    assert wide.peak(2) == pytest.approx(20e9) and wide.bandwidth(3) == 1e9
    assert Machine.from_json(json.loads(json.dumps(wide.as_json()))) == wide


def test_families_and_their_features() -> None:
    x, y = dense_tensor("f32", (1, 1, 7, 40)), dense_tensor("f32", (1, 1, 7, 90))
    w = dense_tensor("u8", (64,))
    packed = Call("effc_matmul_packed_f32", (x, w), (y,), (1, 40, 90, 0, 0, 0), 2, flops=2 * 7 * 40 * 90)
    dw = conv_call(8, 8, 5, 3, [1, 0, 8192, 0])
    dw = Call("effc_conv_dw_f32", dw.ins, dw.outs, dw.attrs, 2, flops=100)
    assert [family_of(c) for c in (packed, dw, map_call(3, 4))] == ["matmul", "depthwise", "map"]
    assert family_of(Call("effc_sort", (), ())) == "other"
    for c in (packed, dw, map_call(3, 4), conv_call(8, 8, 5, 3, [1, 10, 8, 72])):
        f = FAMILIES[family_of(c)].features(c, CX)
        assert all(np.isfinite(v) for v in f.values())
        assert f == FAMILIES[family_of(c)].features(Call.from_json(json.loads(json.dumps(c.as_json()))), CX)
    f = FAMILIES["matmul"].features(packed, CX)
    assert (f["m"], f["k_blocks"], f["last_panel"]) == (pytest.approx(np.log2(7)), 1.0, 10.0)
    assert f["fill_cols"] == pytest.approx(90 / 96) and f["fill_rows"] == pytest.approx(7 / 12)


def test_threads_get_shares_of_whole_grains() -> None:
    two = Context(MACHINE, 32, 2, 1 << 20)
    assert shares(10, 10, two) == (1, 2.0)  # one grain: the other thread has nothing
    assert shares(11, 10, two) == (2, 20 / 11) and shares(40, 10, two) == (2, 1.0)
    assert shares(30, 10, two) == (2, pytest.approx(4 / 3)) and shares(30, 10, CX) == (1, 1.0)
    small, large = (FAMILIES["map"].features(map_call(r, 64), two) for r in (256, 4096))
    assert (small["used"], small["even"], large["used"], large["even"]) == (1, 2.0, 2, 1.0)


def nhwc(n: int, c: int, h: int, w: int) -> Tensor:
    return Tensor("f32", (n, c, h, w), (h * w * c, 1, w * c, c))


def pool_call(c: int, side: int, window: int, maximum: bool) -> Call:
    out = side // window
    attrs = (int(maximum), 0, 1, 0, 1, window, window, 1, window, window, *[0] * 6, 1, 1, 1, 1, out, out)
    return Call("effc_pool_f32", (nhwc(1, c, side, side),), (nhwc(1, c, out, out),), attrs, 1)


def test_pools_by_pieces_of_channels() -> None:
    f = FAMILIES["pool"].features(pool_call(64 + 32 + 8 + 3, 8, 2, True), CX)  # the last 3 with 5 before them
    assert [2 ** f[f"max_{p}"] for p in (64, 32, 8)] == pytest.approx([16 * 4 * n for n in (64, 32, 16)])
    assert f["max_16"] == f["mean_64"] == f["mean_rest"] == f["max_rest"] == f["single"] == 0
    f = FAMILIES["pool"].features(pool_call(64 + 3, 8, 2, True), CX)  # fewer than eight of a block: one by one
    assert 2 ** f["max_rest"] == pytest.approx(16 * 4 * 3) and f["max_8"] == 0 and f["single"] == pytest.approx(3 / 67)
    assert 2 ** f["window_rows"] == pytest.approx(16 * 2 * 2)
    f = FAMILIES["pool"].features(pool_call(128, 8, 8, False), CX)
    assert 2 ** f["mean_32"] == pytest.approx(64 * 128) and f["mean_64"] == f["max_64"] == 0 and f["wide"] == 1


def test_convolutions_by_the_way_in_which_tiles_read_their_input() -> None:
    """Cycles of the micro-kernels: pointwise ones by lines, others by rows inside the image and at its border, those of
    few channels by offsets."""

    def features(c: int, o: int, side: int, n: int, pad: int) -> dict[str, float]:
        out, steps = side + 2 * pad - n + 1, c * n * n
        attrs = (1, 0, 0, 1, o, 1, n, n, 1, 1, 1, 0, pad, pad, 1, 1, 1, 1, out, out, 2, 126, 128, min(384, steps), 0)
        y = Tensor("f32", (1, 1, out * out, o), (out * out * o, out * out * o, o, 1))
        call = Call("effc_conv_f32", (nhwc(1, c, side, side), dense_tensor("u8", (4 * o * steps,))), (y,), attrs, 2)
        return FAMILIES["conv"].features(call, CX)

    paths = ("line_steps", "row_steps", "offset_steps", "border_steps", "gathered")
    point, wide, few = features(64, 32, 12, 1, 0), features(32, 32, 12, 3, 1), features(3, 32, 12, 3, 1)
    assert [p for p in paths if point[p]] == ["line_steps"] and point["segments"] == 0
    assert 2 ** point["line_steps"] == pytest.approx(24 * 64 * 2 * 6)  # tiles of 6 by 2 vectors, 6 cycles a step
    assert [p for p in paths if wide[p]] == ["row_steps", "border_steps"]
    assert 2 ** wide["row_steps"] >= 100 / 6 * 288 * 2 * 6 and wide["run"] == pytest.approx(np.log2(96))
    assert [p for p in paths if few[p]] == ["row_steps", "border_steps", "gathered"]
    assert 2 ** few["gathered"] == pytest.approx(44 * 27)  # of the border's pixels, all taps
    assert features(64, 36, 12, 1, 0)["tails"] == pytest.approx(np.log2(144 * 4))
    assert point["tails"] == 0


def test_a_call_of_a_model_is_fed_by_the_one_before() -> None:
    replace = dataclasses.replace
    r = replace(made_up(1)[0], between=64 << 20)
    fed = {g: train.context_of(replace(r, group=g)).fed for g in ("map-0-1", "rows-0-1/0/0", "rows-0-1/1/2")}
    assert list(fed.values()) == [False, False, True] and train.context_of(replace(r, source="a model")).fed
    far = Context(MACHINE, 32, 1, 64 << 20)
    alone, after = (FAMILIES["map"].features(map_call(64, 64), replace(far, fed=x)) for x in (False, True))
    assert alone["from_l3"] == pytest.approx(after["from_l3"] + np.log2(1.5)) and after["fed"] == 1  # x is still there
    assert alone["cold"] > 0 and FAMILIES["map"].features(map_call(64, 64), replace(far, between=1))["cold"] == 0


def test_copies_by_the_loop_that_makes_them() -> None:
    def features(shape: tuple[int, ...], strides: tuple[int, ...]) -> dict[str, float]:
        out = dense_tensor("f32", shape)
        return FAMILIES["copy"].features(Call("effc_copy", (Tensor("f32", shape, strides),), (out,)), CX)

    heads = features((96, 12, 64), (64, 96 * 64, 1))  # rows of 256 bytes
    assert heads["kind"] == 0 and 2 ** heads["row_lines"] == pytest.approx(96 * 12) and heads["box_run"] == 8
    image = features((1, 96, 50), (4800, 1, 96))  # channels to the front: blocks of 4 by 4, and what is left
    amount = [2 ** image[n] for n in ("kind", "blocks", "edge", "tiles")]
    assert amount == pytest.approx([2, 96 * 48, 96 * 2, 3 * 2])
    every = features((50, 100), (200, 2))  # every other element, all of one line
    assert every["kind"] == 2 and 2 ** every["near"] == pytest.approx(5000) and every["strided"] == 0
    parts = tuple(nhwc(1, c, 8, 8) for c in (16, 48))
    joined = FAMILIES["copy"].features(Call("effc_concat", parts, (nhwc(1, 64, 8, 8),), (1,)), CX)
    assert joined["kind"] == 0 and 2 ** joined["row_lines"] == pytest.approx(128)
    assert 2 ** joined["moved_rows"] == pytest.approx(64 * 64 * 4)


def test_reductions_by_rows_and_columns() -> None:
    def features(rows: int, cols: int, mask: int, cx: Context = CX) -> dict[str, float]:
        kept = (1, cols) if mask == 1 else (rows, 1)
        out = Tensor("f32", kept, (0, 1) if mask == 1 else (1, 0))
        call = Call("red", (dense_tensor("f32", (rows, cols)),), (out,), (2, mask, int(mask == 1), 0, rows, cols), 1,
                    body="sum:1")  # fmt: skip
        return FAMILIES["red"].features(call, cx)

    f = features(100, 5000, 2)
    assert (2 ** f["units"], 2 ** f["calls"]) == (pytest.approx(100), pytest.approx(300))  # 2048 at a time
    f = features(100, 130, 1)  # blocks of 64 columns
    assert (2 ** f["units"], 2 ** f["calls"], f["columns"]) == (pytest.approx(3), pytest.approx(300), 1)
    two = Context(MACHINE, 32, 2, 1 << 20)
    assert features(8, 500, 2, two)["used"] == 1 and features(400, 500, 2, two)["used"] == 2
    assert features(1 << 16, 8, 1, two)["split"] == 1 and features(1 << 16, 8, 2, two)["split"] == 0


def test_calls_of_a_program() -> None:
    values = [
        {"d": "f32", "shape": ["s0", 4], "k": "input", "i": 0},
        {"d": "f32", "shape": [4, "s0"], "k": "view", "base": 0, "offset": 0, "strides": [1, 4]},
        {"d": "f32", "shape": ["s0", ["*", 2, "s0"]], "k": "temp"},
    ]
    one = {"op": "call", "kernel": "effc_copy", "in": [1, -1], "out": [2], "attrs": [["+", "s0", 1]], "n_own": 1,
           "fattrs": [], "flops": 0, "bytes": 0}  # fmt: skip
    scan = {"op": "scan", "length": "s0", "body": {"values": values, "code": [one]}, "in": [], "out": []}
    program = {"values": values, "code": [one, scan], "arena": {"static_bytes": None}}
    found = list(calls(program, {"s0": 3}))
    assert [c.times for c in found] == [1.0, 3.0]
    assert found[0].ins == (calls_tensor("f32", (4, 3), (1, 4)), None) and found[0].attrs == (4,)
    assert found[0].outs[0].strides == (6, 1)
    assert footprint(program, {"s0": 3}) == 4 * (3 * 4 + 3 * 6)


def calls_tensor(dtype: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> object:
    from effc.cost.calls import Tensor

    return Tensor(dtype, shape, strides)


# Model ----------------------------------------------------------------------------------------------------------------


def test_learns_a_rule_and_keeps_it_in_a_file(learned: cost_model.CostModel, tmp_path: Path) -> None:
    c = map_call(700, 64)
    p = learned.predict(c, Context(MACHINE, 32, 1, c.bytes))
    assert p.source == "model" and p.seconds == pytest.approx(3 * floor(c, CX), rel=0.1) and p.uncertainty < 0.2
    learned.save(tmp_path / "m.npz")
    back = cost_model.CostModel.load(tmp_path / "m.npz")
    assert back.predict(c, CX) == learned.predict(c, CX)
    ways = conv_ways(64, 96, 32, 3)
    assert back.choose(ways, CX) == learned.choose(ways, CX)
    assert back.machine == MACHINE and back.info["records"] == len(made_up())


def test_out_of_its_depth_the_roofline_answers(learned: cost_model.CostModel) -> None:
    for c, why in (
        (map_call(1 << 20, 1 << 10), "measured were"),
        (Call("effc_conv_f64", *_parts(conv_call(64, 64, 16, 3, [2, 6, 32, 64]))), "no effc_conv_f64"),
        (Call("effc_sort", (dense_tensor("f32", (9,)),), (dense_tensor("f32", (9,)),)), "no model of family other"),
    ):
        p = learned.predict(c, CX)
        assert p.source == "roofline" and why in p.why and p.seconds == estimate(c, CX)


def _parts(c: Call) -> tuple[object, ...]:
    return c.ins, c.outs, c.attrs, c.n_own


def test_never_below_the_floor(learned: cost_model.CostModel) -> None:
    for rows in (1, 10, 100, 1000, 1900):
        c = map_call(rows, 64)
        assert learned.predict(c, CX).seconds >= floor(c, CX)


def test_chooses_what_is_faster_and_settles_the_order_for_one_thread(learned: cost_model.CostModel) -> None:
    for ci, co, size in ((64, 96, 32), (128, 128, 16), (32, 64, 64)):
        ways = conv_ways(ci, co, size, 3)
        one = learned.choose(ways, CX)
        two = learned.choose(ways, Context(MACHINE, 32, 2, 1 << 20))
        assert ways[one.index].attrs[23] == ways[two.index].attrs[23]
        assert one.index == 0 or one.gain > np.exp(one.uncertainty)
        assert ways[one.index].attrs[20] == 3 or ways[0].attrs[20] == 3  # what the made-up records say is fastest
    none = learned.choose([map_call(3, 64), map_call(3, 64)], CX)
    assert none.index == 0 and "ranks" in none.why


def test_a_gain_within_the_margin_is_not_taken(learned: cost_model.CostModel) -> None:
    ways = conv_ways(64, 96, 32, 3)
    family = learned.families["conv"]
    before = family.rank_error
    try:
        family.rank_error = cost_model.NEVER
        never = learned.choose(ways, CX)
        family.rank_error = 5.0
        made = learned.choose(ways, CX)
    finally:
        family.rank_error = before
    assert never.index == 0 and "did not pay off" in never.why and not never.seconds
    assert made.index == 0 and "margin" in made.why and len(made.seconds) == len(ways)
    text = made.as_json([str(c.attrs[20:24]) for c in ways])
    assert len(text["losers"]) == 4 and text["ways"] == len(ways)
    assert [x["us"] for x in text["losers"]] == sorted(x["us"] for x in text["losers"])


def test_margin_asks_for_proof() -> None:
    rng = np.random.default_rng(0)
    group, rules = np.repeat(np.arange(200), 2), np.tile([True, False], 200)
    score = np.tile([0.0, -0.06], 200)
    real = np.tile([0.0, -0.06], 200) + 0.05 * rng.standard_normal(400)
    quiet = np.full(400, 0.03)
    assert train.margin(score, real, group, rules, quiet) == 0.05  # the largest that still takes them
    for chance in (0.05 * rng.standard_normal(400), -real):
        assert train.margin(score, chance, group, rules, quiet) == train.MARGINS[-1]
    assert train.margin(score, real, group, rules, quiet + 1) == train.MARGINS[-1]  # nobody may vote


def test_pace_is_relative_to_a_calm_minute() -> None:
    from dataclasses import replace

    r = made_up(1)[0]
    found = train.paces([replace(r, yard=y, threads=t) for t in (1, 2) for y in (*[1e-4 * t] * 20, 2e-4 * t, 0.0)])
    assert found[20] == found[42] == pytest.approx(np.log(2)) and found[0] == 0 and np.isnan(found[[21, 43]]).all()


def test_too_few_records() -> None:
    with pytest.raises(EffcError, match="too few"):
        train.fit(made_up(2))


def test_a_file_that_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.npz").write_bytes(b"nothing")
    with pytest.raises(EffcError, match="cannot read the cost model"):
        cost_model.CostModel.load(tmp_path / "m.npz")
    monkeypatch.setenv("EFFC_COST_MODEL", str(tmp_path / "missing.npz"))
    with pytest.raises(EffcError, match="there is no cost model"):
        cost_model.shipped("cpu:x86-64-v3")
    monkeypatch.setenv("EFFC_COST_MODEL", "0")
    assert cost_model.shipped("cpu:x86-64-v3") is None


def test_choices_are_made_unless_they_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for named, on in (("", True), ("0", False), ("1", True)):
        monkeypatch.setenv("EFFC_COST_MODEL", named)
        for target in ("cpu:x86-64-v3", "cpu:x86-64-v4"):
            assert (cost_model.chooser(target, 1, 0) is not None) == on
            assert (alternatives.asker(target, 0) is not None) == on
            assert (cost_model.shipped(target) is not None) == on


def test_the_fastest_of_noisy_ways_by_halves() -> None:
    """Ways that take the same, each measured with noise: the fastest measured is too fast, by halves it is not."""
    from bench.cost import by_halves

    rng = np.random.default_rng(0)
    assert by_halves(np.array([2.0, 3.0]), np.zeros(2), rng) == pytest.approx(2)
    fastest, fair = [], []
    for _ in range(200):
        halves = 0.1 * rng.standard_normal((7, 2))
        seconds = np.exp(halves.mean(1))
        fastest.append(np.log(seconds.min()))
        fair.append(np.log(by_halves(seconds, np.abs(halves[:, 0] - halves[:, 1]), rng)))
    assert np.mean(fastest) < -0.08 and abs(np.mean(fair)) < 0.02


def test_groups_of_two_measurements_are_not_one() -> None:
    """A seed's cases and a model's calls have the same names whenever they are measured."""
    made = [r for r in made_up(2) if r.family == "conv"]
    later = [dataclasses.replace(r, yard=2 * r.yard, seconds=3 * r.seconds) for r in made]
    t = train.Table([*made, *later])
    assert len(set(t.group)) == 4 and not set(t.group[: len(made)]) & set(t.group[len(made) :])
    np.testing.assert_allclose(t.relative()[: len(made)], t.relative()[len(made) :], atol=1e-9)
