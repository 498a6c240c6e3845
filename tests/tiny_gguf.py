"""Tiny GGUF files, made with the gguf package's writer from random models of mlx-lm.

Names come from the gguf package's own tables, and Q and K are permuted as llama.cpp's converter
does, so that the two directions share no code.
"""

import json

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Type
from mlx.utils import tree_flatten
from mlx_lm.models import gemma3_text, llama, qwen2, qwen3
from tokenizers import Tokenizer, models, trainers
from tokenizers import pre_tokenizers as pre

CLASSES = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3, "gemma3_text": gemma3_text}
ARCHITECTURES = {name: name.removesuffix("_text") for name in CLASSES}  # llama.cpp's
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = "the quick brown fox jumps over the lazy dog; 12345 naïve cafés don't say grüß 日本語. " * 4


def train_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    )
    bpe = json.loads(tokenizer.to_str())["model"]
    tokens = SPECIAL + sorted(bpe["vocab"], key=bpe["vocab"].get)
    return tokens, [" ".join(merge) for merge in bpe["merges"]]


TOKENS, MERGES = train_bpe()


def tiny_config(arch, **changes):
    config = {
        "model_type": arch,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(TOKENS) + 5,
        "max_position_embeddings": 512,
        "rope_theta": 20000.0,
        "tie_word_embeddings": True,
    }
    if arch == "gemma3_text":
        config |= {"sliding_window_pattern": 6, "rope_local_base_freq": 10000.0}
        config["query_pre_attn_scalar"] = changes.get("head_dim", 8)
    return config | changes


def tiny_model(config, seed=0):
    """A random float32 model whose every number matters: norms and biases are random too."""
    module = CLASSES[config["model_type"]]
    model = module.Model(module.ModelArgs.from_dict(config))
    if config["model_type"] == "gemma3_text":
        model.sanitize({})
    rng = np.random.default_rng(seed)
    weights = []
    for name, array in tree_flatten(model.parameters()):
        scale = 0.5 if "norm" in name else 0.3
        values = rng.normal(1.0 if "norm" in name else 0.0, scale, array.shape)
        weights.append((name, mx.array(values.astype(np.float32))))
    model.load_weights(weights)
    return model


def permute(weights, heads):
    """What llama.cpp's converter does to Q and K of a llama."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def tensors_of(model, config):
    """The model's tensors as a GGUF file would hold them, in float32."""
    arch = ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, arch.upper()), config["num_hidden_layers"]
    )
    tensors = {}
    for name, array in tree_flatten(model.parameters()):
        values = np.array(array)
        if arch == "llama" and "q_proj" in name:
            values = permute(values, config["num_attention_heads"])
        if arch == "llama" and "k_proj" in name:
            values = permute(values, config["num_key_value_heads"])
        if arch == "gemma3" and name.endswith("norm.weight"):
            values = values + 1
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = values
    return tensors


def metadata_of(config):
    arch = ARCHITECTURES[config["model_type"]]
    extra = {f"{arch}.attention.key_length": config["head_dim"]} if "head_dim" in config else {}
    if arch == "gemma3":
        extra[f"{arch}.attention.sliding_window"] = config["sliding_window"]
    return extra | {
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": config["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }


def write(path, arch, tensors, metadata, types=None):
    """Write a GGUF file; `types` names the quantization of a tensor, float32 where it doesn't."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add |= {str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    for name, values in tensors.items():
        kind = (types or {}).get(name, Type.F32)
        data = values if values.dtype == np.uint8 else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tiny(folder, arch="llama", *, tensors=None, metadata=None, without=(), **changes):
    """A tiny GGUF file with additions, changes and omissions; also its config and model."""
    config = tiny_config(arch, **changes)
    model = tiny_model(config)
    all_tensors = tensors_of(model, config) | (tensors or {})
    all_metadata = metadata_of(config) | (metadata or {})
    for name in without:
        all_tensors.pop(name, None)
        all_metadata.pop(name, None)
    path = write(folder / "tiny.gguf", ARCHITECTURES[arch], all_tensors, all_metadata)
    return path, config, model


def logits(model, length=40):
    ids = mx.array([[(7 * n) % 250 for n in range(length)]])
    return np.array(model(ids).astype(mx.float32))
