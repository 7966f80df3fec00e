"""A language model of transformers in training, fused and not: the same losses, the same gradients."""

from __future__ import annotations

import copy
import io
import warnings

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import xent.torch as xt  # noqa: E402
from tests.torch.fused.comparisons import events  # noqa: E402
from tests.torch.fused.small_configs import VOCABULARY as K  # noqa: E402
from xent.torch.fused.logits import Logits  # noqa: E402

F = torch.nn.functional

# Those of transformers, and PyTorch's of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def llama(**others):
    sizes = {
        "vocab_size": K,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | others)).train()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = torch.randint(5, K, (2, 2, 9), generator=generator)
    labels[0, :3] = -100
    return tokens, labels


def own_loss(logits, labels, **options):
    rows = logits[:, :-1].reshape(-1, K)
    return F.cross_entropy(rows, labels[:, 1:].reshape(-1), **options)


def step(model, use):
    """(result of ``use``, gradients)."""
    tokens, labels = batch()
    model.zero_grad()
    value = use(model, tokens, labels)
    value.backward()
    return value.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance=2e-6):
    (value, gradients), (expected_value, expected_gradients) = found, expected
    assert value.dtype == expected_value.dtype
    torch.testing.assert_close(value, expected_value, rtol=tolerance, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(g.abs().max() for g in expected_gradients.values())
    for name, e in expected_gradients.items():
        assert (gradients[name] - e).abs().max() <= tolerance * e.abs().max() + 1e-2 * tolerance * largest


def both(use, prepare=lambda model: model, tolerance=2e-6, **config):
    """Compare a step of a model and of its fused copy."""
    model = prepare(llama(**config))
    twin = xt.fuse(copy.deepcopy(model))
    expected = step(model, use)
    found = step(twin, use)
    assert_same(found, expected, tolerance)
    return twin


def model_loss(model, x, y):
    return model(x, labels=y).loss


def freeze(part):
    def prepare(model):
        getattr(model, part).requires_grad_(False)
        return model

    return prepare


def checkpointed(use_reentrant):
    def prepare(model):
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        return model

    return prepare


SHIFTED = torch.randint(5, K, (2, 9), generator=torch.Generator().manual_seed(3))

FUSED = {
    "its own loss": model_loss,
    "times 3": lambda m, x, y: 3 * m(x, labels=y).loss,
    "accumulated": lambda m, x, y: m(x, labels=y).loss / 2 + m(x.flip(0), labels=y).loss / 2,
    "as a tuple": lambda m, x, y: m(x, labels=y, return_dict=False)[0],
    "num_items_in_batch": lambda m, x, y: m(x, labels=y, num_items_in_batch=7).loss,
    "num_items_in_batch, a tensor": lambda m, x, y: m(x, labels=y, num_items_in_batch=torch.tensor(7)).loss,
    "shift_labels": lambda m, x, y: m(x, labels=y, shift_labels=SHIFTED).loss,
    "ignore_index": lambda m, x, y: m(x, labels=y.clamp_min(5), ignore_index=5).loss,
    "logits_to_keep": lambda m, x, y: F.cross_entropy(m(x, logits_to_keep=1).logits[:, -1], y[:, -1]),
    "a loss outside": lambda m, x, y: own_loss(m(x).logits, y),
    "with smoothing": lambda m, x, y: own_loss(m(x).logits.float(), y, label_smoothing=0.1),
    "of each token, weighted": lambda m, x, y: (
        own_loss(m(x).logits, y, reduction="none") * torch.linspace(0, 1, 16)
    ).sum(),
    "of a mask": lambda m, x, y: F.cross_entropy(m(x).logits[y >= 0], y[y >= 0]),
    "of the logits of its own loss": lambda m, x, y: own_loss(m(x, labels=y).logits, y),
    "two": lambda m, x, y: (lambda out: out.loss + own_loss(out.logits, y, reduction="sum"))(m(x, labels=y)),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused(name):
    both(FUSED[name])
    assert set(events()) == {"fused"}


@pytest.mark.parametrize(
    ("prepare", "config"),
    [
        (lambda m: m, {"tie_word_embeddings": True}),
        (freeze("model"), {}),
        (freeze("lm_head"), {}),
        (checkpointed(True), {}),
        (checkpointed(False), {}),
    ],
    ids=["tied", "frozen body", "frozen head", "checkpointed, reentrant", "checkpointed"],
)
def test_kinds_of_training(prepare, config):
    both(model_loss, prepare, **config)
    assert events() == {"fused": 1}


COMPUTED = {
    "of axes (B, V, T)": lambda m, x, y: F.cross_entropy(m(x).logits.transpose(1, 2), y),
    "log_softmax": lambda m, x, y: -m(x).logits.log_softmax(-1).gather(-1, SHIFTED[..., None]).mean(),
    "written in place": lambda m, x, y: own_loss(m(x).logits.div_(2.0), y),
    "metrics before the loss": lambda m, x, y: own_loss(with_metrics(m(x).logits), y),
}


def with_metrics(logits):
    with torch.no_grad():
        logits.argmax(-1)
    return logits


@pytest.mark.parametrize("name", COMPUTED)
def test_computed(name):
    both(COMPUTED[name], tolerance=0)
    assert len(events()) == 1
    assert "fused" not in events()


def test_second_order():
    def use(model, x, y):
        weight = model.lm_head.weight
        (gradient,) = torch.autograd.grad(model(x, labels=y).loss, weight, create_graph=True)
        return gradient.square().sum()

    both(use, tolerance=1e-5, attn_implementation="eager")
    assert events() == {"fused": 1}


def test_half_precision():
    """Both round: neither is nearer to the truth."""
    both(model_loss, lambda m: m.bfloat16(), tolerance=3e-2)
    assert events() == {"fused": 1}


def test_autocast():
    def use(model, x, y):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x, labels=y).loss

    both(use, tolerance=3e-2)
    assert events() == {"fused": 1}


def test_all_labels_ignored():
    """The difference 2 of docs/differences.md: PyTorch's loss is NaN."""
    model = xt.fuse(llama())
    tokens, labels = batch()
    loss = model(tokens, labels=torch.full_like(labels, -100)).loss
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in model.parameters())


def test_evaluation_and_generation():
    model = llama()
    twin = xt.fuse(copy.deepcopy(model))
    tokens, labels = batch()
    for each in (model, twin):
        each.eval()
    with torch.no_grad():
        expected, found = model(tokens, labels=labels), twin(tokens, labels=labels)
    assert type(found.logits) is torch.Tensor
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    for mode in (False, True):
        given = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(
            twin.train(mode).generate(tokens, **given), model.train(mode).generate(tokens, **given)
        )


def test_copies_files_and_names():
    model = llama()
    names = list(model.state_dict())
    xt.fuse(model)
    assert list(model.state_dict()) == names
    tokens, labels = batch()
    loss = model(tokens, labels=labels).loss

    twin = copy.deepcopy(model)
    assert twin.lm_head.forward.__self__ is twin.lm_head
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert twin(tokens, labels=labels).loss.item() == pytest.approx(5.768, abs=1e-3)  # ln 320
    assert torch.equal(model(tokens, labels=labels).loss, loss)

    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded(tokens, labels=labels).logits) is torch.Tensor  # not fused any more
    assert torch.allclose(loaded(tokens, labels=labels).loss, loss)
    assert type(xt.fuse(loaded)(tokens, labels=labels).logits) is Logits


def test_another_output_layer_is_not_fused_until_it_is_asked_for():
    model = xt.fuse(llama())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(K + 8)
    tokens, labels = batch()
    assert type(model(tokens, labels=labels).logits) is torch.Tensor
    assert type(xt.fuse(model)(tokens, labels=labels).logits) is Logits


@pytest.mark.parametrize(
    ("order", "targets", "expected"),
    [
        ("before", ["q_proj", "v_proj"], {"fused": 1}),
        ("after", ["q_proj", "v_proj"], {"fused": 1}),
        ("before", ["q_proj", "lm_head"], {"computed for __add__": 1}),
        ("after", ["q_proj", "lm_head"], {"computed for __add__": 1}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_adapters(order, targets, expected):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    found = []
    for is_fused in (False, True):
        model = llama()
        if is_fused and order == "before":
            xt.fuse(model)
        torch.manual_seed(1)
        model = peft.get_peft_model(model, config)
        if is_fused and order == "after":
            xt.fuse(model)
        found.append(step(model, model_loss))
    assert_same(found[1], found[0])
    assert events() == expected


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_is_a_whole_head():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match="`model_or_linear`"):
        xt.fuse(peft.get_peft_model(llama(), config))


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        tokens, labels = batch(index)
        return {"input_ids": tokens[0], "labels": labels[0]}


TRAINERS = {
    "plain": ({}, "fused"),
    "accumulation": ({"gradient_accumulation_steps": 2}, "fused"),
    "checkpointing": ({"gradient_checkpointing": True}, "fused"),
    "autocast": ({"bf16": True, "learning_rate": 1e-3}, "fused"),
    "label smoothing": ({"label_smoothing_factor": 0.1}, "computed"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "autocast",
        "label smoothing",
        pytest.param("accumulation", marks=pytest.mark.slow),
        pytest.param("checkpointing", marks=pytest.mark.slow),
    ],
)
def test_trainer(name, tmp_path):
    pytest.importorskip("accelerate")
    options, expected = TRAINERS[name]
    losses = []
    for is_fused in (False, True):
        model = llama()
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            eval_strategy="steps",
            eval_steps=3,
            **{"learning_rate": 1e-2} | options,
        )
        trainer = transformers.Trainer(
            xt.fuse(model) if is_fused else model,
            arguments,
            train_dataset=Rows(),
            eval_dataset=Rows(),
            compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        )
        trainer.train()
        log = trainer.state.log_history
        losses.append([e[k] for e in log for k in ("loss", "eval_loss", "eval_accuracy") if k in e])
    assert len(losses[0]) == 5
    assert losses[1] == pytest.approx(losses[0], rel=5e-3 if name == "autocast" else 2e-4)
    assert any(event.startswith(expected) for event in events())


def test_compiled():
    """In one graph, the model's loss is that of hidden states and weight."""
    model = llama()
    twin = xt.fuse(copy.deepcopy(model))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    tokens, labels = batch()
    for _ in range(2):
        expected, out = model(tokens, labels=labels), compiled(tokens, labels=labels)
        model.zero_grad()
        twin.zero_grad()
        expected.loss.backward()
        out.loss.backward()
        assert type(out.logits) is Logits
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-5, atol=1e-7)
    assert len(graphs) == 1
    sizes = {
        tuple(node.meta["example_value"].shape)
        for node in graphs[0].graph.nodes
        if isinstance(node.meta.get("example_value"), torch.Tensor) and not node.meta["example_value"].is_meta
    }
    assert not any(shape and shape[-1] == K and len(shape) > 1 for shape in sizes), sizes
    assert torch.equal(out.logits.argmax(-1), expected.logits.argmax(-1))
    out = compiled(tokens, labels=labels)
    torch.optim.SGD(twin.parameters(), 0.1).step()
    with pytest.raises(RuntimeError, match="was written"):
        out.logits.argmax(-1)
    twin.eval()
    assert type(compiled(tokens, labels=labels).logits) is torch.Tensor
