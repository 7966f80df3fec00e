"""Small models of transformers, built offline: their configurations with every size made small."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 320
LARGEST = 8_000_000  # parameters of a model that is built

# Whatever a configuration calls its sizes: the value that it gets where it has the name.
_NAMES: dict[Any, str] = {
    1: "n_group topk_group num_nextn_predict_layers first_k_dense_replace num_kv_shared_layers",
    2: "num_hidden_layers n_layer n_layers num_layers num_encoder_layers num_decoder_layers encoder_layers "
    "decoder_layers num_key_value_heads num_kv_heads kv_n_heads num_experts_per_tok num_experts_per_token "
    "moe_topk moe_k top_k_experts linear_num_key_heads swa_num_key_value_heads index_n_heads num_codebooks",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads attention_heads num_experts num_local_experts "
    "n_routed_experts moe_num_experts linear_num_value_heads swa_num_attention_heads linear_num_heads "
    "rotary_dim zero_expert_num num_query_groups",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim index_head_dim linear_key_head_dim "
    "linear_value_head_dim linear_head_dim swa_head_dim sliding_window kv_channels mamba_d_state state_size "
    "ssm_state_size attention_head_size dim_head time_step_rank mamba_dt_rank index_topk "
    "hidden_size_per_layer_input laurel_rank query_pre_attn_scalar sliding_window_size window_size",
    16: "q_lora_rank kv_lora_rank o_lora_rank qk_head_dim mamba_chunk_size chunk_size mamba_d_head "
    "block_size mamba_head_dim mamba_headdim attention_chunk_size attention_window_size",
    32: "hidden_size d_model n_embd embed_dim embedding_size word_embed_proj_dim attention_hidden_size "
    "lru_width embedding_dim backbone_hidden_size input_embedding_size output_embedding_size ple_embed_dim",
    64: "intermediate_size moe_intermediate_size ffn_dim d_ff n_inner ffn_hidden_size dim_ff d_inner "
    "encoder_ffn_dim decoder_ffn_dim shared_expert_intermediate_size shared_intermediate_size "
    "shared_experts_intermediate_size expert_ffn_hidden_size intermediate_size_mlp dense_intermediate_size "
    "max_position_embeddings n_positions n_ctx max_seq_len context_length max_source_positions "
    "max_target_positions model_max_length mamba_d_ssm",
    VOCABULARY: "vocab_size decoder_vocab_size vocab_size_per_layer_input",
}
SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}

_LATENT = {"num_key_value_heads": 4, "head_dim": 8}  # keys and values are not grouped there

# What single configurations need besides.
ALSO: dict[str, dict[str, Any]] = {
    "BailingHybridForCausalLM": {"n_group": 1, "num_group": 1, "topk_group": 1},
    "BambaForCausalLM": {"mamba_n_heads": 4},
    "CohereCompassForCausalLM": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "DbrxForCausalLM": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 2},
    "Dots3NoteForCausalLM": {"num_key_value_heads": 4},
    "Dots1ForCausalLM": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "FalconH1ForCausalLM": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "GraniteMoeHybridForCausalLM": {"mamba_n_heads": 4},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 8},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 8},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Mamba2ForCausalLM": {"head_dim": 16, "n_groups": 1},
    "MinistralForCausalLM": {"head_dim": 8},
    "Mistral4ForCausalLM": {"head_dim": 16},
    "NemotronForCausalLM": {"num_key_value_heads": 2},
    "RoCBertForCausalLM": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 320},
    "XmodForCausalLM": {"default_language": "en_XX"},
    "ZambaForCausalLM": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "n_mamba_heads": 2,
    },
    "Zamba2ForCausalLM": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
    },
    "xLSTMForCausalLM": {"num_blocks": 2},
}


def classes(ending: str) -> list[str]:
    """The names of the classes of transformers with an ending, but for those that choose another class."""
    return sorted(n for n in dir(transformers) if n.endswith(ending) and not n.startswith("Auto"))


def changes(config: Any, scalings: dict[str, Any]) -> dict[str, Any]:
    """The arguments that make a configuration like ``config`` small, with ``scalings`` where it has them."""
    found: dict[str, Any] = {"use_cache": False} if "use_cache" in vars(config) else {}
    if "kv_lora_rank" in vars(config):
        found |= _LATENT
    for name, value in vars(config).items():
        if name in found:
            continue
        if isinstance(value, transformers.PretrainedConfig):
            found[name] = changes(value, scalings)
            if value.model_type:
                found[name]["model_type"] = value.model_type
        elif name in scalings:
            found[name] = scalings[name]
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            found[name] = VOCABULARY if name == "vocab_size" else min(SIZES[name], value)
        elif name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            found[name] = 3
        elif any(x in name for x in ("dropout", "pdrop", "layerdrop")) and isinstance(value, float):
            found[name] = 0.0
    return found


def small_model(name: str, scalings: dict[str, Any] | None = None) -> Any:
    """A model with random weights in training mode."""
    cls = getattr(transformers, name)
    config = cls.config_class(**(changes(cls.config_class(), scalings or {}) | ALSO.get(name, {})))
    with torch.device("meta"):
        count = sum(p.numel() for p in cls(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{name} has {count:,} parameters")
    torch.manual_seed(0)
    return cls(config).float().train()
