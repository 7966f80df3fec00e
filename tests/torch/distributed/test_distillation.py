"""Divergences of classes in shards are those of one process, to the last bit the same on every rank."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

import xent.torch as xt  # noqa: E402
from tests.torch.distributed.ranks import (  # noqa: E402
    ROWS,
    Checks,
    K,
    Spoken,
    arrays,
    assert_passed,
    assert_same_everywhere,
    mine,
    sizes,
)
from xent.torch.distributed import (  # noqa: E402
    vocab_parallel_linear_kl_divergence,
    vocab_parallel_linear_topk_kl_divergence,
)

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHECKS = Checks()
DIRECTIONS, TAILS = ("forward", "reverse"), ("bin", "renormalise")


def tensors(scale=1.0):
    """(hidden, weight, bias, teacher's hidden, its weight, its bias), whole."""
    x, w, b, y, v, c = arrays((*ROWS, 5), (K, 5), (K,), (*ROWS, 3), (K, 3), (K,))
    return [torch.tensor(a) for a in (scale * x, w, b, y, v, c)]


def entries(k=3):
    """(indices, log_probs) of a teacher, among all classes."""
    _, _, _, y, v, _ = tensors()
    log_p = torch.log_softmax(y @ v.T, -1)
    indices = (17 * torch.arange(12 * K).reshape(*ROWS, K) % 131).argsort(-1)[..., :k]
    return indices, log_p.gather(-1, indices)


def shard(x):
    """This rank's classes of a parameter, as a leaf."""
    return x[mine()].clone().requires_grad_()


def gathered(x):
    """The whole of a parameter's gradient."""
    whole = torch.zeros(K, *x.shape[1:], dtype=x.dtype)
    whole[mine()] = x
    dist.all_reduce(whole)
    return whole


def compare(one_process, sharded, dtype=torch.float64, scale=1.0, **options):
    """`sharded` of this rank's operands gives the loss and the gradients of `one_process`."""
    x, w, b = (t.to(dtype) for t in tensors(scale)[:3])
    whole = [t.double().requires_grad_() for t in (x, w, b)]
    own = [x.clone().requires_grad_(), shard(w), shard(b)]
    expected = one_process(*whole[:2], bias=whole[2], **options)
    loss = sharded(*own[:2], bias=own[2], group=None, **options)
    upstream = torch.linspace(0.5, 2.0, expected.numel()).reshape(expected.shape)
    slopes = torch.autograd.grad(expected, whole, upstream.to(expected.dtype))
    found = list(torch.autograd.grad(loss, own, upstream.to(loss.dtype)))
    assert_same_everywhere(loss)
    assert_same_everywhere(found[0])
    found[1:] = [gathered(g) for g in found[1:]]
    eps = 1e-12 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), expected, rtol=eps, atol=eps)
    for g, e in zip(found, slopes, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=0, atol=4 * eps * max(1.0, e.abs().max().item()))


def dense(function, dtype=torch.float64):
    """``function`` with its teacher, whole or of this rank."""
    y, v, c = (t.to(dtype) for t in tensors()[3:])
    if function is xt.linear_kl_divergence:
        return lambda x, w, **more: function(
            x, w, y.to(x.dtype), v.to(x.dtype), teacher_bias=c.to(x.dtype), **more
        )
    return lambda x, w, **more: function(x, w, y, v[mine()], teacher_bias=c[mine()], **more)


def topk(function, k=3):
    return lambda x, w, **more: function(x, w, *entries(k), **more)


def counted():
    """Options by which rows are left out and weighted."""
    labels = torch.arange(12).reshape(ROWS) % K
    return {
        "labels": labels, "ignore_index": 4,
        "sample_weight": torch.linspace(0.0, 2.0, 12, dtype=torch.float64).reshape(ROWS),
    }  # fmt: skip


EACH = [
    {"chunk_bytes": 700, "temperature": 1.5, **counted()},
    {"reduction": "none", "chunk_bytes": 700, **counted()},
    {"denominator": "rows", **counted()},
    {"reduction": "sum", "sizes": True},
]


@CHECKS
def a_teacher_with_logits() -> None:
    for direction, options in itertools.product(DIRECTIONS, EACH):
        given = {**options, "direction": direction}
        is_told = given.pop("sizes", False)
        more = {"sizes": sizes()} if is_told else {}
        one = dense(xt.linear_kl_divergence)
        own = dense(vocab_parallel_linear_kl_divergence)
        compare(one, lambda *a, own=own, more=more, **k: own(*a, **more, **k), **given)


@CHECKS
def a_teacher_with_entries() -> None:
    each = itertools.product(DIRECTIONS, TAILS, EACH)
    for (direction, tail, options), k in zip(each, itertools.cycle((1, 3, K)), strict=False):
        given = {**options, "direction": direction, "tail": tail}
        more = {"sizes": sizes()} if given.pop("sizes", False) else {}
        one, own = topk(xt.linear_topk_kl_divergence, k), topk(vocab_parallel_linear_topk_kl_divergence, k)
        compare(one, lambda *a, own=own, more=more, **k: own(*a, **more, **k), **given)


@CHECKS
def lower_precision_and_large_logits() -> None:
    for direction, (dtype, scale) in itertools.product(
        DIRECTIONS, ((torch.float32, 1.0), (torch.bfloat16, 1.0), (torch.float64, 300.0))
    ):
        options = {"dtype": dtype, "scale": scale, "direction": direction, "chunk_bytes": 700}
        compare(
            dense(xt.linear_kl_divergence, dtype),
            dense(vocab_parallel_linear_kl_divergence, dtype),
            **options,
        )
        one, own = topk(xt.linear_topk_kl_divergence), topk(vocab_parallel_linear_topk_kl_divergence)
        compare(one, own, **options)


@CHECKS
def rows_that_are_left_out_hold_anything() -> None:
    x, w, _, y, v, _ = tensors()
    labels = torch.arange(12).reshape(ROWS) % K
    bad = labels == 4
    indices, log_probs = entries()
    hidden, teacher = (torch.where(bad[..., None], torch.nan, t) for t in (x, y))
    expected = ()
    for student, function, given in (
        (x, vocab_parallel_linear_kl_divergence, (y, v[mine()])),
        (hidden, vocab_parallel_linear_kl_divergence, (teacher, v[mine()])),
        (x, vocab_parallel_linear_topk_kl_divergence, (indices, log_probs)),
        (
            hidden,
            vocab_parallel_linear_topk_kl_divergence,
            (torch.where(bad[..., None], -7, indices), torch.where(bad[..., None], torch.nan, log_probs)),
        ),
    ):
        own = student.clone().requires_grad_(), shard(w)
        loss = function(*own, *given, labels=labels, ignore_index=4, group=None)
        found = loss.detach(), *torch.autograd.grad(loss, own)
        if student is hidden:
            for a, b in zip(found, expected, strict=True):  # of the call before
                torch.testing.assert_close(a, b, rtol=0, atol=0)
        expected = found
        # What is not read may differ between the ranks.
        other = [torch.where(bad[..., None], dist.get_rank(), t) for t in (x, given[0])]
        labelled = {"labels": labels, "ignore_index": 4, "group": None}
        loss = function(other[0], w[mine()], other[1], *given[1:], **labelled)
        torch.testing.assert_close(loss, found[0])
    everything = vocab_parallel_linear_kl_divergence(
        hidden.requires_grad_(), shard(w), teacher, v[mine()], labels=torch.full(ROWS, -100), group=None
    )
    assert everything.item() == 0
    for rows in (slice(0), (slice(None), slice(0))):  # no rows at all
        teacher = indices[rows], log_probs[rows]
        assert not vocab_parallel_linear_topk_kl_divergence(x[rows], shard(w), *teacher, group=None)
        assert not vocab_parallel_linear_kl_divergence(x[rows], shard(w), y[rows], v[mine()], group=None)
    assert not torch.autograd.grad(everything, hidden)[0].any()


@CHECKS
def classes_that_are_excluded() -> None:
    """By student and teacher, and all classes of a rank by the student: no NaN."""
    x, w, b, y, v, c = tensors()
    b[:5], c[:5] = -torch.inf, -torch.inf  # all of the first rank's
    indices, log_probs = torch.tensor([5, 7, 10]).expand(*ROWS, 3), entries()[1]
    for direction, tail in itertools.product(DIRECTIONS, (None, *TAILS)):
        found = []
        for is_whole in (True, False):
            hidden = x.clone().requires_grad_()
            part = slice(None) if is_whole else mine()
            options = {"bias": b[part], "direction": direction} | ({} if is_whole else {"group": None})
            if tail is None:
                function = xt.linear_kl_divergence if is_whole else vocab_parallel_linear_kl_divergence
                loss = function(hidden, w[part], y, v[part], teacher_bias=c[part], **options)
            else:
                function = (
                    xt.linear_topk_kl_divergence if is_whole else vocab_parallel_linear_topk_kl_divergence
                )
                loss = function(hidden, w[part], indices, log_probs, tail=tail, **options)
            found.append((loss.detach(), *torch.autograd.grad(loss, hidden)))
        for whole, own in zip(*found, strict=True):
            assert whole.isfinite().all()
            torch.testing.assert_close(own, whole, rtol=1e-11, atol=1e-13)


@CHECKS
def what_the_ranks_say() -> None:
    """The rows that count, their chunks, and the gradient of the hidden state; nothing of size rows × K."""
    x, w, _, y, v, _ = tensors()
    labels = torch.arange(12).reshape(ROWS) % K  # two rows are ignored
    chunk_bytes = 4 * max(sizes()) * 8
    options = {"labels": labels, "ignore_index": 0, "group": None, "sizes": sizes()}
    for k, function, given, copies in (
        (3, vocab_parallel_linear_kl_divergence, (y, v[mine()]), 6),
        (3, vocab_parallel_linear_topk_kl_divergence, entries(), 1),
    ):
        hidden, weight = x.clone().requires_grad_(), shard(w)
        with Spoken() as spoken:
            loss = function(hidden, weight, *given, chunk_bytes=copies * chunk_bytes, **options)
        each = 40 if copies == 6 else 8 * (k + 2)
        assert (spoken.calls, spoken.bytes) == (7, 10 * each + x.numel() * 8)
        with Spoken() as spoken:
            loss.backward()
        assert spoken.calls == 0


@CHECKS
def a_divisor_has_its_gradient() -> None:
    """Of S/D it is −S/D²."""
    x, w, _, y, v, _ = tensors()
    for function, given in (
        (vocab_parallel_linear_kl_divergence, (y, v[mine()])),
        (vocab_parallel_linear_topk_kl_divergence, entries()),
    ):
        divisor = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        hidden = x.clone().requires_grad_()
        loss = function(hidden, w[mine()], *given, group=None, denominator=divisor)
        slopes = torch.autograd.grad(loss, (divisor, hidden))
        torch.testing.assert_close(slopes[0], -loss.detach() / 3)
        plain = function(hidden, w[mine()], *given, group=None, denominator=3.0)
        torch.testing.assert_close(slopes[1], torch.autograd.grad(plain, hidden)[0])


@CHECKS
def a_nan_is_on_every_rank() -> None:
    x, w, _, y, v, _ = tensors()
    w[-1, 0] = torch.nan  # of the last rank's classes
    for loss in (
        vocab_parallel_linear_kl_divergence(x, w[mine()], y, v[mine()], group=None),
        vocab_parallel_linear_topk_kl_divergence(x, w[mine()], *entries(), group=None),
    ):
        assert loss.isnan()


@CHECKS
def temperatures_of_rows() -> None:
    x, w, b, *_ = tensors()
    t = torch.linspace(0.5, 2.0, 12, dtype=torch.float64).reshape(ROWS)
    t[0, 0] = t[1, 0] = torch.nan  # of weight 0, and ignored
    is_first = int(dist.get_rank() == 0)
    each = (
        (dense(xt.linear_kl_divergence), dense(vocab_parallel_linear_kl_divergence), {}),
        *(
            (
                topk(xt.linear_topk_kl_divergence),
                topk(vocab_parallel_linear_topk_kl_divergence),
                {"tail": tail},
            )
            for tail in TAILS
        ),
    )
    for (one, own, more), direction in itertools.product(each, DIRECTIONS):
        for reduction in ("mean", "none"):
            options = {"direction": direction, "reduction": reduction, "chunk_bytes": 700, **more}
            compare(one, own, temperature=t, **options, **counted())
        with pytest.raises(ValueError, match=r"`temperature` must be finite and > 0 .* at row 0, column 0"):
            own(x, w[mine()], bias=b[mine()], group=None, temperature=t)
        with pytest.raises(ValueError, match="`temperature` must be the same on every rank"):
            own(x, w[mine()], group=None, temperature=torch.ones(ROWS) + is_first)
        with pytest.raises(ValueError, match="`temperature` is"):
            own(x, w[mine()], group=None, temperature=1.0 if is_first else torch.ones(ROWS))
        learnt, own_learnt = (t.clone().requires_grad_() for _ in range(2))
        call = {"temperature": own_learnt, "direction": direction, **more, **counted()}
        if not more:
            with pytest.raises(NotImplementedError, match="`temperature` of each row, must not require"):
                own(x, w[mine()], group=None, **call)
            continue
        loss = own(x, w[mine()], bias=b[mine()], group=None, **call)
        (found,) = torch.autograd.grad(loss, own_learnt)
        expected = one(x, w, bias=b, **{**call, "temperature": learnt})
        torch.testing.assert_close(found, torch.autograd.grad(expected, learnt)[0])
        assert_same_everywhere(found)


@CHECKS
def differences_and_mistakes_are_errors_on_every_rank() -> None:
    x, w, _, y, v, _ = tensors()
    indices, log_probs = entries()
    is_first, shares = int(dist.get_rank() == 0), v[mine()]

    def by_logits(teacher_hidden=y, teacher_weight=shares, hidden=x, **options):
        return vocab_parallel_linear_kl_divergence(
            hidden, w[mine()], teacher_hidden, teacher_weight, group=None, **options
        )

    def by_entries(indices=indices, log_probs=log_probs, **options):
        return vocab_parallel_linear_topk_kl_divergence(
            x, w[mine()], indices, log_probs, group=None, **options
        )

    for function, given, words in (
        (by_logits, {"teacher_hidden": y + is_first}, "`teacher_hidden` must be the same on every rank"),
        (by_logits, {"hidden": x + is_first}, "`hidden` must be the same on every rank"),
        (by_logits, {"temperature": 1.0 + is_first}, "`temperature` is 2.0 on rank 0"),
        (by_logits, {"direction": "up"}, "`direction` must be"),
        (by_logits, {"teacher_weight": v[:1]}, "`teacher_weight_shard` must have the rows"),
        (by_entries, {"indices": indices.flip(-1) if is_first else indices}, "`indices` must be the same"),
        (by_entries, {"log_probs": log_probs - is_first}, "`log_probs` must be the same on every rank"),
        (by_entries, {"indices": indices + K}, r"`indices` must be in \[0, 11\); got"),
        (by_entries, {"indices": 0 * indices}, "`indices` must be different classes"),
        (by_entries, {"tail": "bin" if is_first else "renormalise"}, "`tail` is 'bin' on rank 0"),
        (by_entries, {"labels": torch.full(ROWS, K)}, r"`labels` must be in \[0, 11\)"),
        (by_entries, {"reduction": "avg" if is_first else "sum"}, "`reduction` must be"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            function(**given)
    for derived in (y.clone().requires_grad_(), v[mine()].clone().requires_grad_()):
        teacher = (derived, v[mine()]) if derived.shape == y.shape else (y, derived)
        with pytest.raises(NotImplementedError, match="must not require gradients"):
            vocab_parallel_linear_kl_divergence(x, w[mine()], *teacher, group=None)
    hidden = x.clone().requires_grad_()
    loss = vocab_parallel_linear_topk_kl_divergence(hidden, w[mine()], indices, log_probs, group=None)
    (slope,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(NotImplementedError, match="derivable once"):
        slope.sum().backward()


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks(world, name):
    assert_passed(__name__, world, name)
