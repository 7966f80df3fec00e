"""The causal language models of transformers, fused: equal, or as before; a wrong build is noticed."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.torch.fused import small_configs, zoo  # noqa: E402
from xent.torch.fused.formula import Formula  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers

# A class of each way from the hidden states to the loss.
FAMILIES = {
    "BartForCausalLM": "fused",  # its own CrossEntropyLoss, labels that are not shifted
    "BloomForCausalLM": "fused",
    "CohereForCausalLM": "fused",
    "FalconH1ForCausalLM": "fused",
    "GPT2LMHeadModel": "fused",  # tied weights
    "Gemma2ForCausalLM": "fused",
    "GraniteForCausalLM": "fused",
    "Inkling2ForCausalLM": "fused",  # some of the classes
    "LlamaForCausalLM": "fused",
    "MBartForCausalLM": "fused",
    "MixtralForCausalLM": "fused",
    "MusicgenForCausalLM": "refused",
    "ProphetNetForCausalLM": "as before",
    "RecurrentGemmaForCausalLM": "fused",
}
# Between whose output layer and loss something is computed.
SCALED = ["CohereForCausalLM", "FalconH1ForCausalLM", "Gemma2ForCausalLM", "GraniteForCausalLM"]


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    found = zoo.find(name, zoo.has_scalings(name))
    assert found.verdict.partition(":")[0] == FAMILIES[name], found


def ignore_steps(monkeypatch):
    """Make a wrong build, which takes the logits for those of the layer."""
    monkeypatch.setattr(Formula, "scaled", lambda formula, factor: formula)
    monkeypatch.setattr(Formula, "capped", lambda formula: formula)


@pytest.mark.parametrize("name", SCALED)
def test_a_wrong_build_is_noticed(name, monkeypatch):
    ignore_steps(monkeypatch)
    assert zoo.find(name, zoo.has_scalings(name)).verdict == "WRONG"


@pytest.mark.slow
def test_the_table_is_what_is_found():
    found = zoo.page()
    assert "WRONG" not in found
    assert found == zoo.PAGE.read_text("utf-8")


@pytest.mark.slow
def test_a_wrong_build_is_noticed_wherever_it_matters(monkeypatch):
    scaled = [n for n in small_configs.classes("ForCausalLM") if zoo.has_scalings(n)]
    ignore_steps(monkeypatch)
    verdicts = {name: zoo.find(name, zoo.has_scalings(name)).verdict for name in scaled}
    unnoticed = {name for name, verdict in verdicts.items() if verdict == "fused"}
    assert unnoticed == {"InklingForCausalLM", "MptForCausalLM"}  # they scale the hidden states
    assert len(scaled) > 20
