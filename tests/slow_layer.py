# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""One-layer models of every family in float64, straight from the Hub's files: its weight names and config fields.

Shares no code with the package or transformers. One row at a time, one head at a time.
"""

import torch


_QWEN = {
    "embed": "model.embed_tokens.weight",
    "layer": "model.layers.0.",
    "norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "router": "mlp.gate.weight",
    "expert": "mlp.experts.{}.",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
_LLADA = {
    **_QWEN,
    "embed": "model.transformer.wte.weight",
    "layer": "model.transformer.blocks.0.",
    "norm": "attn_norm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "attn_out",
    "mlp_norm": "ff_norm",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
    "final_norm": "model.transformer.ln_f.weight",
    "head": "model.transformer.ff_out.weight",
}
_LLADA2 = {
    **_QWEN,
    "embed": "model.word_embeddings.weight",
    "qkv": "attention.query_key_value",
    "q_norm": "attention.query_layernorm",
    "k_norm": "attention.key_layernorm",
    "o": "attention.dense",
}
_NAMES = {"llada": _LLADA, "mmada": _LLADA, "llada2_moe": _LLADA2}


def slow_logits(family: str, config: dict, weights: dict[str, torch.Tensor], ids: torch.Tensor, block: int | None):
    """Logits of one row without padding.

    Args:
        family: name of the golden checkpoint's folder.
        config: config.json.
        weights: model.safetensors.
        ids: (L,).
        block: tokens per block, `None` for full attention.

    Returns:
        (L, V), float64.
    """
    names, weights = _NAMES.get(family, _QWEN), {key: value.double() for key, value in weights.items()}
    if family in ("llada", "mmada"):
        heads, kv_heads, hidden = config["n_heads"], config["n_kv_heads"], config["d_model"]
        tied = config["weight_tying"]
    else:
        heads, kv_heads, hidden = (
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["hidden_size"],
        )
        tied = config["tie_word_embeddings"]
    head_dim = config.get("head_dim") or hidden // heads
    eps = config["rms_norm_eps"]
    layer = {key[len(names["layer"]) :]: value for key, value in weights.items() if key.startswith(names["layer"])}

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight

    def linear(x, name):
        bias = layer.get(f"{name}.bias")
        return x @ layer[f"{name}.weight"].T + (0 if bias is None else bias)

    def swiglu(x, prefix=""):
        gate, up, down = (
            names[part].removeprefix("mlp.") if prefix else names[part] for part in ("gate", "up", "down")
        )
        hidden_state = linear(x, prefix + gate)
        return linear(hidden_state * hidden_state.sigmoid() * linear(x, prefix + up), prefix + down)

    def rotate(x, position):
        """Rotary embedding of one head's vector: pairs are (i, i + half) of the rotated part."""
        rotated = int(head_dim * config.get("partial_rotary_factor", 1.0))
        half = rotated // 2
        output = x.clone()
        for i in range(half):
            angle = torch.tensor(position * config["rope_theta"] ** (-2 * i / rotated), dtype=torch.float64)
            a, b = x[i], x[i + half]
            output[i] = a * angle.cos() - b * angle.sin()
            output[i + half] = b * angle.cos() + a * angle.sin()
        return output

    x = weights[names["embed"]][ids]  # (L, H)
    length = len(ids)
    h = norm(x, layer[f"{names['norm']}.weight"])
    if "qkv" in names:
        q, k, v = linear(h, names["qkv"]).split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], -1)
    else:
        q, k, v = (linear(h, names[name]) for name in "qkv")
    outputs = []
    for head in range(heads):
        shared = head // (heads // kv_heads)
        qh, kh, vh = (
            q[:, head * head_dim : (head + 1) * head_dim],
            k[:, shared * head_dim : (shared + 1) * head_dim],
            v[:, shared * head_dim : (shared + 1) * head_dim],
        )
        if f"{names['q_norm']}.weight" in layer:
            qh, kh = norm(qh, layer[f"{names['q_norm']}.weight"]), norm(kh, layer[f"{names['k_norm']}.weight"])
        qh = torch.stack([rotate(qh[i], i) for i in range(length)])
        kh = torch.stack([rotate(kh[i], i) for i in range(length)])
        scores = qh @ kh.T / head_dim**0.5
        for query in range(length):
            for key in range(length):
                if block is not None and key // block > query // block:
                    scores[query, key] = -torch.inf
        outputs.append(scores.softmax(-1) @ vh)
    x = x + linear(torch.cat(outputs, -1), names["o"])
    h = norm(x, layer[f"{names['mlp_norm']}.weight"])
    x = x + (swiglu(h) if names["router"] not in layer else _experts(family, config, names, layer, swiglu, h))
    x = norm(x, weights[names["final_norm"]])
    return x @ weights[names["embed" if tied else "head"]].T


def _experts(family, config, names, layer, swiglu, h):
    """Mixture of experts, token by token."""
    output = torch.zeros_like(h)
    for token in range(len(h)):
        logits = layer[names["router"]] @ h[token]  # (E,)
        top_k = config["num_experts_per_tok"]
        if family == "llada2_moe":
            scores = logits.sigmoid()
            choice = scores + layer["mlp.gate.expert_bias"]
            groups = choice.view(config["n_group"], -1)
            best = groups.topk(2, -1).values.sum(-1).topk(config["topk_group"]).indices.tolist()
            size = groups.size(1)
            allowed = [e for group in best for e in range(group * size, (group + 1) * size)]
            chosen = sorted(allowed, key=lambda e: -choice[e].item())[:top_k]
            share = scores[chosen]
            share = share / share.sum() if top_k > 1 else share
            share = share * config["routed_scaling_factor"]
        else:
            scores = logits.softmax(-1)
            chosen = scores.topk(top_k).indices.tolist()
            share = scores[chosen]
            if family != "lladamoe" and config["norm_topk_prob"]:
                share = share / share.sum()
        for expert, weight in zip(chosen, share, strict=True):
            output[token] += weight * swiglu(h[token], names["expert"].format(expert))
        if family == "llada2_moe":
            output[token] += swiglu(h[token], "mlp.shared_experts.")
    return output
