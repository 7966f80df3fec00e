"""The recipe for TRL: its fused head gives the same outputs and gradients by xent."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from trl.trainer import utils  # noqa: E402

from examples import causal_lm, trl_head  # noqa: E402

TOKENS = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(0))
LABELS = TOKENS.where(torch.arange(17) > 4, -100)


@pytest.fixture(autouse=True)
def theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own function, put back after a test."""
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", utils._ChunkedLogProbFunction)


def outputs_and_gradients(temperature: float, softcap: float | None, dtype: Any) -> Any:
    model = causal_lm.make_model(fused=False).to(dtype)
    model.config.final_logit_softcapping = softcap
    model.config.logit_scale = 1.5
    utils.add_fused_lm_head(model, temperature=temperature, outputs=trl_head.FIELDS)
    found = model(TOKENS, labels=LABELS, fused_lm_head=True)
    upstream = torch.linspace(-1, 2, found.log_probs.numel()).reshape(found.log_probs.shape)
    (found.loss + (upstream * (found.log_probs - 0.3 * found.entropy)).sum()).backward()
    return found, [p.grad for p in model.parameters()]


@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (1.3, 2.0)])
def test_outputs_and_gradients_are_those_of_trl(temperature: float, softcap: float | None) -> None:
    expected, slopes = outputs_and_gradients(temperature, softcap, torch.float32)
    trl_head.use_xent()
    found, gradients = outputs_and_gradients(temperature, softcap, torch.float32)
    for name in ("loss", *trl_head.FIELDS):
        assert found[name].requires_grad == expected[name].requires_grad, name
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_what_is_not_asked_for_is_none() -> None:
    trl_head.use_xent()
    model = causal_lm.make_model(fused=False)
    utils.add_fused_lm_head(model)
    found = model(TOKENS, labels=LABELS, fused_lm_head=True)
    assert [getattr(found, name) is None for name in trl_head.FIELDS] == [False, True, True, True, True]


def test_float32_logits_of_a_bfloat16_model(monkeypatch: pytest.MonkeyPatch) -> None:
    trl_head.use_xent()
    x, w = (torch.randn(n, 64, generator=torch.Generator().manual_seed(n)) * 3 for n in (50, 256))
    x, w, y = x.bfloat16(), w.bfloat16(), torch.arange(50)
    exact = (x.double() @ w.double().T).log_softmax(-1).gather(-1, y[:, None])[:, 0]
    rounded = utils._ChunkedLogProbFunction.apply(x, w, None, y, 1.0, 1 << 15, outputs=())[0]
    monkeypatch.setattr(trl_head.TokenStatistics, "logits_dtype", torch.float32)
    found = utils._ChunkedLogProbFunction.apply(x, w, None, y, 1.0, 1 << 15, outputs=())[0]
    assert (found - exact).abs().max() < 1e-4 * exact.abs().max()
    assert (rounded - exact).abs().max() > 10 * (found - exact).abs().max()


def sft_losses(tmp_path: Any) -> list[float]:
    """The losses of three steps of TRL's trainer."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    letters = Tokenizer(models.WordLevel({f"{i}": i for i in range(255)} | {"</s>": 255}, unk_token="</s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="</s>", pad_token="</s>")
    config = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"input_ids": TOKENS.tolist()})
    trainer = SFTTrainer(
        causal_lm.make_model(fused=False), config, train_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_sft_trainer_learns_the_same(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sft_losses(tmp_path)
        trl_head.use_xent()
        found = sft_losses(tmp_path)
    assert len(found) == 3
    assert found[-1] < found[0]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-4)
