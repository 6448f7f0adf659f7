#!/usr/bin/env python3
"""Trains a small Llama on the bytes of the Python standard library, for a given time, in plain torch.

    train.py FOLDER [--device cuda|cpu] [--size small|tiny] [--seconds N] [--prompts N]

FOLDER receives config.json, model.safetensors (bf16, the names of Hugging Face's Llama) and prompts.json: pieces of
files that it was not trained on. A token is a byte.
"""

import argparse
import json
import math
import pathlib
import sysconfig
import time
from collections.abc import Callable

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

SIZES = {
    # hidden, inner, layers, heads, key heads; sequences a step and their length.
    "small": ((1024, 2816, 8, 16, 4), (64, 512)),
    "tiny": ((256, 512, 3, 4, 2), (8, 128)),
}
PROMPT = 64
HELD_OUT = 0.05
RATE, WARM_UP = 1e-3, 0.05


def config(size: str) -> dict:
    hidden, inner, layers, heads, keys = SIZES[size][0]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": 256,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


class Attention(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        hidden, self.heads, self.keys = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.head = hidden // self.heads
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, self.keys * self.head, bias=False)
        self.v_proj = nn.Linear(hidden, self.keys * self.head, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        def split(y: torch.Tensor, heads: int) -> torch.Tensor:
            return y.unflatten(-1, (heads, self.head)).transpose(1, 2)

        q, k, v = split(self.q_proj(x), self.heads), split(self.k_proj(x), self.keys), split(self.v_proj(x), self.keys)
        q, k = turned(q, cosine, sine), turned(k, cosine, sine)
        k, v = (y.repeat_interleave(self.heads // self.keys, dim=1) for y in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


def turned(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary positions: the halves of a head are the two coordinates."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        hidden, inner = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"]) for _ in range(2)
        )
        self.self_attn, self.mlp = Attention(c), Mlp(c)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Its state_dict has the names of a checkpoint."""

    def __init__(self, c: dict):
        super().__init__()
        self.config = c
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.model.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.model.norm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        head = self.config["hidden_size"] // self.config["num_attention_heads"]
        steps = torch.arange(0, head, 2, device=tokens.device) / head
        angles = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * self.config["rope_theta"] ** -steps
        cosine, sine = angles.cos(), angles.sin()
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cosine, sine)
        return self.lm_head(self.model.norm(x))


def library() -> tuple[bytes, bytes]:
    """The sources of the standard library: to train on, and held out. Whole files, in an order that mixes packages."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    files = [path for path in root.rglob("*.py") if "site-packages" not in path.parts]
    files.sort(key=lambda path: (path.name, str(path)))
    texts = [path.read_bytes() for path in files]
    held = max(1, int(1 / HELD_OUT))
    trained = b"\0".join(text for index, text in enumerate(texts) if index % held)
    return trained, b"\0".join(texts[::held])


def train(
    model: Llama,
    text: bytes,
    seconds: float,
    shape: tuple[int, int],
    device: str,
    now: Callable[[], float] = time.monotonic,
) -> dict:
    """Until the time is over; the rate of learning follows the time, which `now` tells once a step."""
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    begin, losses, spans = now(), [], torch.arange(shape[1] + 1, device=device)
    while (spent := (now() - begin) / seconds) < 1:
        warm, cool = min(1.0, spent / WARM_UP), 0.5 + 0.5 * math.cos(math.pi * spent)
        optimizer.param_groups[0]["lr"] = RATE * warm * max(cool, 0.05)
        starts = torch.randint(len(data) - shape[1] - 1, (shape[0], 1), generator=generator).to(device)
        batch = data[starts + spans].long()
        # On a host without bf16 units float32 is faster.
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            logits = model(batch[:, :-1])
        loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if len(losses) % 50 == 1:
            print(f"step {len(losses)}, {spent:.0%} of the time, loss {loss.item():.3f}", flush=True)
    last = torch.stack(losses[-20:]).mean().item()
    return {"steps": len(losses), "loss": last, "tokens": len(losses) * shape[0] * shape[1]}


def prompts(text: bytes, count: int) -> list[list[int]]:
    """Pieces at even distances."""
    step = (len(text) - PROMPT) // count
    return [list(text[index * step : index * step + PROMPT]) for index in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--prompts", type=int, default=512)
    options = parser.parse_args()
    torch.manual_seed(0)
    trained, held_out = library()
    with torch.device(options.device):
        model = Llama(config(options.size))
    done = train(model, trained, options.seconds, SIZES[options.size][1], options.device)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "config.json").write_text(json.dumps(model.config))
    weights = {name: weight.to("cpu", torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    safetensors.torch.save_file(weights, options.folder / "model.safetensors", metadata={"format": "pt"})
    (options.folder / "prompts.json").write_text(json.dumps(prompts(held_out, options.prompts)))
    done["parameters"] = sum(weight.numel() for weight in weights.values())
    done["bytes"] = len(trained)
    (options.folder / "training.json").write_text(json.dumps(done))
    print(json.dumps(done))


if __name__ == "__main__":
    main()
