"""Small models of texts, made here: a tokenizer of a few words, and encoders with random weights as folders."""

import json

import numpy as np

from served import graph

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghij"), ".", ","]
WIDTH = 16


def tokenizer(**changes):
    """Return a tokenizer.json like BERT's: lower case, word pieces, [CLS] … [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if changes.get("marks", True):
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    # As published files often have it; neither may come through.
    made.enable_truncation(3)
    made.enable_padding(length=7)
    return made.to_str().encode()


def encoder_onnx(seed=0, width=WIDTH, datatype="INT64"):
    """Return an ONNX encoder: last_hidden_state of a token depends on all real tokens of its text, and on no other."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(len(WORDS), width)).astype("float32")
    nodes = [
        ("Gather", ["table", "input_ids"], ["vectors"], {}),
        ("Cast", ["attention_mask"], ["mask"], {"to": 1}),
        ("Unsqueeze", ["mask", "last"], ["mask3"], {}),
        ("Mul", ["vectors", "mask3"], ["real"], {}),
        ("ReduceSum", ["real", "middle"], ["sum"], {"keepdims": 1}),
        ("Tanh", ["sum"], ["context"], {}),
        ("Add", ["vectors", "context"], ["last_hidden_state"], {}),
    ]
    return graph(
        nodes,
        [(name, datatype, ["n", "t"]) for name in ("input_ids", "attention_mask")],
        [("last_hidden_state", "FLOAT", ["n", "t", width])],
        [("table", table), ("last", np.array([2])), ("middle", np.array([1]))],
    )


def leaky_onnx(seed=0):
    """Return an encoder that forgets its mask: padding changes its answers."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(len(WORDS), WIDTH)).astype("float32")
    nodes = [
        ("Gather", ["table", "input_ids"], ["vectors"], {}),
        ("ReduceSum", ["vectors", "middle"], ["sum"], {"keepdims": 1}),
        ("Cast", ["attention_mask"], ["mask"], {"to": 1}),
        ("Unsqueeze", ["mask", "last"], ["mask3"], {}),
        ("Mul", ["vectors", "mask3"], ["real"], {}),
        ("Add", ["real", "sum"], ["last_hidden_state"], {}),
    ]
    return graph(
        nodes,
        [(name, "INT64", ["n", "t"]) for name in ("input_ids", "attention_mask")],
        [("last_hidden_state", "FLOAT", ["n", "t", WIDTH])],
        [("table", table), ("last", np.array([2])), ("middle", np.array([1]))],
    )


def write(folder, **files):
    """Write JSON files (by their names with _ for .) into a folder and return it."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": len(WORDS),
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 20, "pad_token": "[PAD]",
    "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
}  # fmt: skip


def onnx_folder(folder, **changes):
    """Make a folder with an ONNX encoder: config.json, tokenizer.json, onnx/model.onnx."""
    write(folder, config_json=BERT | changes, tokenizer_config_json=TOKENIZER_CONFIG)
    (folder / "tokenizer.json").write_bytes(tokenizer())
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(encoder_onnx())
    return folder


def sentence_folder(folder, modules=MODULES, pooling=None, **changes):
    """Add what makes a folder one of sentence-transformers'."""
    write(
        folder,
        modules_json=modules,
        sentence_bert_config_json={"max_seq_length": 12, "do_lower_case": False},
        **{"1_Pooling__config_json": pooling or {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}},
    )
    return folder


def bert_folder(folder, kind="BertModel", **changes):
    """Make a folder with a small random model of transformers': config.json, tokenizer.json, model.safetensors."""
    import torch
    import transformers

    config = BERT | changes | {"architectures": [kind]}
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.AutoConfig.for_model(**config))
    model.save_pretrained(folder, safe_serialization=True)
    write(folder, tokenizer_config_json=TOKENIZER_CONFIG)
    (folder / "tokenizer.json").write_bytes(tokenizer())
    return folder


SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48},
    "llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 48, "tie_word_embeddings": False,
    },
}  # fmt: skip
DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def decoder_folder(folder, kind="gpt2", **changes):
    """Make a folder with a small random language model: tokens are bytes, its tables have some more rows than those."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: place for place, letter in enumerate([*letters, "</s>"])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["</s>"])
    more = SIZES[kind] | (DROPOUT if kind == "gpt2" else {})
    config = transformers.AutoConfig.for_model(
        kind, **more | {"vocab_size": 264, "bos_token_id": 256, "eos_token_id": 256} | changes
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(made.to_str())
    write(folder, tokenizer_config_json={})
    return folder
