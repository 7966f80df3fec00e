"""The device code: row statistics, equations (2) and (3) on a tile of ROWS × BLOCK logits.

Two kernels. `rows` reduces rows: if BLOCK holds a whole row (HELD), statistics and gradient come from the
same registers, in one read; else one loop computes the statistics and a second one the gradient. `grad` gets
the statistics as arguments and needs no reduction. Both compute in F: float64 for float64, else float32.

u = w·factor, where w is the logit, or u with a softcap. Without a softcap the largest logit is thus
subtracted before the multiplication, which is exact. Strides of rows and counts of classes are in units of
UNIT elements, so that the compiler knows their alignment.

Arguments that are None are compiled away; options are numbers at run time. Triton's interpreter passes Python
floats where the compiler has tensors; `tl.full` takes both.
"""

# mypy cannot check these types: loops over a constexpr, pointers of any dtype.
# mypy: ignore-errors
# An `if` on a compile-time value compiles one branch only: it cannot be an expression, and needs its `else`.
# ruff: noqa: SIM108, RET505
import triton
import triton.language as tl

from xent.kernels.triton.elements import bent, curvature, expm1, log1p, slope, value

COUNTS = ("inner", "tiles", "classes")  # any number of rows and classes is served by one compilation


@triton.jit
def _places(array, outer, i, k, UNIT: tl.constexpr):
    """64-bit addresses of a tile's elements; ``array`` is (pointer, strides of outer, row, class)."""
    base = (outer * array[1] + i * array[2]) * UNIT
    return array[0] + base[:, None] + k[None, :].to(tl.int64) * array[3]


@triton.jit
def _load(array, outer, i, k, inside, other, UNIT: tl.constexpr, F: tl.constexpr, EVICT: tl.constexpr):
    """A tile in the dtype of the arithmetic, or None without an array; EVICT is a hint to the cache."""
    if array is None:
        return None
    else:
        places = _places(array, outer, i, k, UNIT)
        return tl.load(places, mask=inside, other=other, eviction_policy=EVICT).to(F)


@triton.jit
def _at(array, outer, i, label, inside, other, UNIT: tl.constexpr, F: tl.constexpr):
    """The element of each row's label, (ROWS, 1)."""
    places = array[0] + (outer * array[1] + i * array[2]) * UNIT + label * array[3]
    return tl.load(places, mask=inside, other=other).to(F)[:, None]


@triton.jit
def _store(array, outer, i, k, result, written, exists, num_classes, UNIT: tl.constexpr):
    """Write a tile of results, with 0 in rows that are not ``written``."""
    inside = exists[:, None] & (k < num_classes)[None, :]
    result = tl.where(written[:, None], result, 0.0).to(array[0].dtype.element_ty)
    tl.store(_places(array, outer, i, k, UNIT), result, mask=inside)


@triton.jit
def _column(pointer, number, row, exists, F: tl.constexpr, ROWS: tl.constexpr):
    """A coefficient of the tile's rows (ROWS,), from a column or from one number for all rows."""
    if pointer is None:
        return tl.full((ROWS,), number, F)
    else:
        return tl.load(pointer + row, mask=exists, other=0.0).to(F)


@triton.jit
def _put(pointer, row, number, read, exists):
    """Write a statistic, 0 in rows that are not read; without a pointer do nothing."""
    if pointer is not None:
        tl.store(pointer + row, tl.where(read, number, 0).to(pointer.dtype.element_ty), mask=exists)


@triton.jit
def _chunk(
    z, w, v, t, k, power,
    HAS_CAP: tl.constexpr, ENTROPY: tl.constexpr, ARGMAX: tl.constexpr,
):  # fmt: skip
    """Sums over a tile's classes; the terms are relative to its largest w.

    (largest w; Σ e without one largest term; Σ v d; Σ v; Σ e d; Σ e t; largest z; its first class), with
    d = w − largest and e = exp(u − largest u) = 2^(d·power).
    """
    top = tl.max(w, 1)
    d = w - tl.where(top == -float("inf"), 0.0, top)[:, None]
    e = tl.exp2(d * power)
    is_top = w == top[:, None]
    rest = tl.sum(tl.where(is_top, 0.0, e), 1) + (tl.sum(is_top.to(w.dtype), 1) - 1.0)
    none = tl.zeros_like(top)
    sigma, mass, heat, tangent = none, none, none, none
    if v is not None:
        sigma = tl.sum(tl.where(v == 0.0, 0.0, v * d), 1)
        mass = -tl.sum(-v, 1)  # without the signs a pass of Triton 3.7's compiler fails in the loop
    if ENTROPY:
        heat = tl.sum(tl.where(e == 0.0, 0.0, e * d), 1)
    if t is not None:
        tangent = tl.sum(e * t, 1)
    highest, first = top, none.to(tl.int32)
    if ARGMAX:
        if HAS_CAP:
            highest = tl.max(z, 1)
        first = tl.min(tl.where(z == highest[:, None], k[None, :], 2147483647), 1)
    return top, rest, sigma, mass, heat, tangent, highest, first


@triton.jit
def _merge(
    top1, rest1, sigma1, mass1, heat1, tangent1, highest1, first1,
    top2, rest2, sigma2, mass2, heat2, tangent2, highest2, first2,
    power,
):  # fmt: skip
    """The sums of two tiles, relative to the larger of their largest."""
    top = tl.maximum(top1, top2)
    d1 = tl.where(top1 == top, 0.0, top1 - top)
    d2 = tl.where(top2 == top, 0.0, top2 - top)
    f1, f2 = tl.exp2(d1 * power), tl.exp2(d2 * power)
    rest = tl.where(top1 < top, (1.0 + rest1) * f1, rest1) + tl.where(top2 < top, (1.0 + rest2) * f2, rest2)
    rest += tl.where(top1 == top2, 1.0, 0.0)
    sigma = sigma1 + tl.where(mass1 == 0.0, 0.0, mass1 * d1)
    sigma += sigma2 + tl.where(mass2 == 0.0, 0.0, mass2 * d2)
    heat = tl.where(f1 == 0.0, 0.0, f1 * (heat1 + (1.0 + rest1) * d1))
    heat += tl.where(f2 == 0.0, 0.0, f2 * (heat2 + (1.0 + rest2) * d2))
    first = tl.where(highest2 > highest1, first2, first1)
    return (
        top, rest, sigma, mass1 + mass2, heat, f1 * tangent1 + f2 * tangent2,
        tl.maximum(highest1, highest2), first,
    )  # fmt: skip


@triton.jit
def _bracket(p, q, v, k, y, at_label, dl, dx, ds, mass):
    """dl·p + dx (e_y − p) + dσ (v − V p); ``q`` is 1 − p, exact, where p > 1/2."""
    if y is None:
        bracket = dl[:, None] * p
    else:
        bracket = tl.where(k[None, :] == y[:, None], at_label[:, None], (dl - dx)[:, None] * p)
    if v is not None:
        dense_sum = mass[:, None]
        bracket += ds[:, None] * tl.where(p > 0.5, (v - dense_sum) + dense_sum * q, v - dense_sum * p)
    return bracket


@triton.jit
def _results(
    x, w, v, r, k, y, at_label, undefined, top, rest, share, dense_sum, rho, kappa, coefficients,
    power, scale, cap, HAS_CAP: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient (2), or with ``r`` of the Hessian product (3)."""
    dl, dx, ds, curl, weight = coefficients
    d = w - tl.where(undefined, 0.0, top)[:, None]
    p = tl.exp2(d * power[:, None]) * share[:, None]
    q = (rest * share)[:, None]
    bend = slope(x, scale, cap, HAS_CAP, TERMS)
    if r is None:
        return bend * _bracket(p, q, v, k, y, at_label, dl, dx, ds, dense_sum)
    else:
        result = p * (weight[:, None] * (bend * r - rho[:, None]) + curl[:, None])
        if y is not None:
            result += tl.where(k[None, :] == y[:, None], kappa[:, None], 0.0)
        result *= bend
        if HAS_CAP:
            bracket = _bracket(p, q, v, k, y, at_label, dl, dx, ds, dense_sum)
            result += curvature(x, scale, cap, TERMS) * r * bracket
        return result


@triton.jit(do_not_specialize=COUNTS)
def rows(
    logits, labels, dense, vector, out, stats,
    dl, dl_value: tl.float64, dx, dx_value: tl.float64, ds, ds_value: tl.float64,
    cl, cl_value: tl.float64, cx, cx_value: tl.float64,
    inverse_temperature: tl.float64, softcap: tl.float64,
    inner, tiles, classes,
    UNIT: tl.constexpr, ROW_UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    HELD: tl.constexpr, HAS_CAP: tl.constexpr, HAS_STATS: tl.constexpr,
    F: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Statistics of the rows, and with ``out`` their gradient (2), or with ``vector`` the product (3)."""
    lse, log_prob, dense_log_prob, mass, entropy, argmax = stats
    pid = tl.program_id(0)
    outer = (pid // tiles).to(tl.int64)
    i = (pid % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = i < inner * ROW_UNIT
    row = outer * (inner * ROW_UNIT) + i
    num_classes = classes * UNIT

    scale = tl.full((ROWS,), inverse_temperature, F)[:, None]
    cap = tl.full((ROWS,), softcap, F)[:, None]
    if HAS_CAP:
        factor = tl.full((ROWS,), 1.0, F)
    else:
        factor = tl.full((ROWS,), inverse_temperature, F)
    power = factor * 1.4426950408889634  # log2(e)
    not_a_number = tl.full((ROWS,), float("nan"), F)

    read = exists
    y = None
    if labels is not None:
        label = tl.load(labels + row, mask=exists, other=-1)
        read = exists & (label >= 0)
        is_class = label < num_classes
        y = tl.where(is_class, label, -1).to(tl.int32)
    if out is not None:
        dl_row = _column(dl, dl_value, row, exists, F, ROWS)
        dx_row = _column(dx, dx_value, row, exists, F, ROWS)
        ds_row = _column(ds, ds_value, row, exists, F, ROWS)
        counts = (dl_row != 0.0) | (dx_row != 0.0) | (ds_row != 0.0)
        if vector is not None:
            cl_row = _column(cl, cl_value, row, exists, F, ROWS)
            cx_row = _column(cx, cx_value, row, exists, F, ROWS)
            counts = counts | (cl_row != 0.0) | (cx_row != 0.0)
        written = read & counts
        if not HAS_STATS:
            read = written

    # The first read: sums over classes. The elements at the labels are read before: `out` may be the logits.
    if labels is not None:
        z_y = _at(logits, outer, i, label, read & is_class, float("nan"), UNIT, F)
        if vector is not None:
            r_y = _at(vector, outer, i, label, read & is_class, 0.0, UNIT, F)
    lanes = tl.arange(0, BLOCK)
    if HELD:
        inside = read[:, None] & (lanes < num_classes)[None, :]
        x = _load(logits, outer, i, lanes, inside, -float("inf"), UNIT, F, "")
        v = _load(dense, outer, i, lanes, inside, 0.0, UNIT, F, "")
        r = _load(vector, outer, i, lanes, inside, 0.0, UNIT, F, "")
        w = value(x, scale, cap, HAS_CAP, TERMS)
        t = bent(r, x, scale, cap, HAS_CAP, TERMS)
        top, rest, sigma, dense_sum, heat, tangent, highest, first = _chunk(
            x, w, v, t, lanes, power[:, None], HAS_CAP, entropy is not None, argmax is not None
        )
    else:
        none = tl.full((ROWS,), 0.0, F)
        top, rest, sigma, dense_sum, heat, tangent = none - float("inf"), none, none, none, none, none
        highest, first = top, none.to(tl.int32)
        for start in range(0, num_classes * tl.max(read.to(tl.int32), 0), BLOCK):
            k1 = start + lanes
            inside1 = read[:, None] & (k1 < num_classes)[None, :]
            x1 = _load(logits, outer, i, k1, inside1, -float("inf"), UNIT, F, "")
            v1 = _load(dense, outer, i, k1, inside1, 0.0, UNIT, F, "")
            r1 = _load(vector, outer, i, k1, inside1, 0.0, UNIT, F, "")
            w1 = value(x1, scale, cap, HAS_CAP, TERMS)
            t1 = bent(r1, x1, scale, cap, HAS_CAP, TERMS)
            top2, rest2, sigma2, dense_sum2, heat2, tangent2, highest2, first2 = _chunk(
                x1, w1, v1, t1, k1, power[:, None], HAS_CAP, entropy is not None, argmax is not None
            )
            top, rest, sigma, dense_sum, heat, tangent, highest, first = _merge(
                top, rest, sigma, dense_sum, heat, tangent, highest, first,
                top2, rest2, sigma2, dense_sum2, heat2, tangent2, highest2, first2,
                power,
            )  # fmt: skip

    undefined = (top == float("inf")) | (top == -float("inf"))
    log_norm = tl.where(undefined, not_a_number, log1p(rest))
    share = tl.where(undefined, not_a_number, 1.0 / (1.0 + rest))  # the largest probability
    if labels is not None:
        log_p = (value(z_y, scale, cap, HAS_CAP, TERMS).reshape(ROWS) - top) * factor - log_norm
        _put(log_prob, row, log_p, read, exists)
    l = top.to(tl.float64) * factor.to(tl.float64) + log_norm.to(tl.float64)  # noqa: E741
    _put(lse, row, l, read, exists)
    if dense is not None:
        sigma = sigma * factor - tl.where(dense_sum == 0.0, 0.0, dense_sum * log_norm)
        _put(dense_log_prob, row, sigma, read, exists)
        _put(mass, row, dense_sum, read, exists)
    _put(entropy, row, log_norm - heat * factor * share, read, exists)
    _put(argmax, row, tl.minimum(first, num_classes - 1), read, exists)

    # The gradient, from a second read or from the same registers.
    if out is not None:
        at_label = None
        rho = tangent * share
        kappa = tl.zeros_like(rho)
        weight = dl_row - dense_sum * ds_row
        if labels is not None:
            # A label out of range makes each coefficient NaN, and so the whole row.
            one = tl.where(is_class, 1.0, not_a_number)
            dl_row, dx_row, ds_row, weight = dl_row * one, dx_row * one, ds_row * one, weight * one
            at_label = dl_row * tl.exp(log_p) - dx_row * expm1(log_p, TERMS)
            weight -= dx_row
            if vector is not None:
                kappa = cx_row * (bent(r_y, z_y, scale, cap, HAS_CAP, TERMS).reshape(ROWS) - rho)
        curl = tl.zeros_like(rho)
        if vector is not None:
            curl = cl_row * rho - kappa
        coefficients = (dl_row, dx_row, ds_row, curl, weight)
        if HELD:
            result = _results(
                x, w, v, r, lanes, y, at_label, undefined, top, rest, share, dense_sum, rho, kappa,
                coefficients, power, scale, cap, HAS_CAP, TERMS,
            )  # fmt: skip
            _store(out, outer, i, lanes, result, written, exists, num_classes, UNIT)
        else:
            for start in range(0, num_classes, BLOCK):
                k2 = start + lanes
                inside2 = written[:, None] & (k2 < num_classes)[None, :]
                x2 = _load(logits, outer, i, k2, inside2, 0.0, UNIT, F, "evict_first")
                v2 = _load(dense, outer, i, k2, inside2, 0.0, UNIT, F, "evict_first")
                r2 = _load(vector, outer, i, k2, inside2, 0.0, UNIT, F, "evict_first")
                w2 = value(x2, scale, cap, HAS_CAP, TERMS)
                result2 = _results(
                    x2, w2, v2, r2, k2, y, at_label, undefined, top, rest, share, dense_sum, rho, kappa,
                    coefficients, power, scale, cap, HAS_CAP, TERMS,
                )  # fmt: skip
                _store(out, outer, i, k2, result2, written, exists, num_classes, UNIT)


@triton.jit(do_not_specialize=(*COUNTS, "chunks"))
def grad(
    logits, labels, dense, out, stats,
    dl, dl_value: tl.float64, dx, dx_value: tl.float64, ds, ds_value: tl.float64,
    inverse_temperature: tl.float64, softcap: tl.float64,
    inner, tiles, classes, chunks,
    UNIT: tl.constexpr, ROW_UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    HAS_CAP: tl.constexpr, F: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Equation (2) of rows whose (lse, log_prob, mass) are known."""
    lse, log_prob, mass = stats
    pid = tl.program_id(0)
    tile = pid // chunks
    k = (pid % chunks) * BLOCK + tl.arange(0, BLOCK)
    outer = (tile // tiles).to(tl.int64)
    i = (tile % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = i < inner * ROW_UNIT
    row = outer * (inner * ROW_UNIT) + i
    num_classes = classes * UNIT

    scale = tl.full((ROWS,), inverse_temperature, F)[:, None]
    cap = tl.full((ROWS,), softcap, F)[:, None]
    dl_row = _column(dl, dl_value, row, exists, F, ROWS)
    dx_row = _column(dx, dx_value, row, exists, F, ROWS)
    ds_row = _column(ds, ds_value, row, exists, F, ROWS)
    read = exists & ((dl_row != 0.0) | (dx_row != 0.0) | (ds_row != 0.0))
    y = None
    at_label = None
    if labels is not None:
        label = tl.load(labels + row, mask=exists, other=-1)
        read = read & (label >= 0)
        is_class = label < num_classes
        y = tl.where(is_class, label, -1).to(tl.int32)
        one = tl.where(is_class, 1.0, tl.full((ROWS,), float("nan"), F))
        dl_row, dx_row, ds_row = dl_row * one, dx_row * one, ds_row * one
        log_p = tl.load(log_prob + row, mask=read, other=0.0).to(F)
        at_label = dl_row * tl.exp(log_p) - dx_row * expm1(log_p, TERMS)
    dense_sum = None
    if dense is not None:
        dense_sum = tl.load(mass + row, mask=read, other=0.0).to(F)
    l = tl.load(lse + row, mask=read, other=0.0)  # noqa: E741
    if not HAS_CAP:  # in units of the logits: z/T is rounded, but z − l·T is exact for z near l·T
        l /= tl.full((ROWS,), inverse_temperature, F).to(tl.float64)  # noqa: E741
    high = l.to(F)
    low = (l - high.to(tl.float64)).to(F)  # the bits of l that F cannot hold

    inside = read[:, None] & (k < num_classes)[None, :]
    x = _load(logits, outer, i, k, inside, 0.0, UNIT, F, "")
    v = _load(dense, outer, i, k, inside, 0.0, UNIT, F, "")
    log_ps = (value(x, scale, cap, HAS_CAP, TERMS) - high[:, None]) - low[:, None]
    if not HAS_CAP:
        log_ps *= scale
    q = -expm1(log_ps, TERMS)
    result = _bracket(tl.exp(log_ps), q, v, k, y, at_label, dl_row, dx_row, ds_row, dense_sum)
    result *= slope(x, scale, cap, HAS_CAP, TERMS)
    _store(out, outer, i, k, result, read, exists, num_classes, UNIT)


@triton.jit(do_not_specialize=("count",))
def rescale(array, factor, count, BLOCK: tl.constexpr, F: tl.constexpr):
    """Multiply an array in place by a number in memory; a number of 1 skips all reads and writes."""
    number = tl.load(factor).to(F)
    if number != 1.0:
        first = tl.program_id(0).to(tl.int64) * BLOCK
        for start in range(first, count, tl.num_programs(0) * BLOCK):
            places = start + tl.arange(0, BLOCK)
            x = tl.load(array + places, mask=places < count).to(F)
            tl.store(array + places, (x * number).to(array.dtype.element_ty), mask=places < count)
