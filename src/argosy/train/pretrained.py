"""Classifiers and language models that start from a Hugging Face folder on this machine.

Nothing is unpickled, no code of the folder is run, and nothing is fetched. Needs transformers (`argosy[hf]`).
Shape suffixes: b batch, t tokens, d width, k outputs, v vocabulary.
"""

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.config import Config, from_plain
from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing
from argosy.formats.hf_folder import Start
from argosy.formats.onnx_export import silence, told
from argosy.train.inputs import ModelInput

if TYPE_CHECKING:
    from collections.abc import Mapping

_POOLS = ("own", "mean", "max", "cls")


class PretrainedOptions(Config, frozen=True):
    """Options of a model whose `init` is a folder."""

    pool: str = ""
    """How the tokens' vectors become one, in front of a new linear head: `mean`, `max` or `cls` (the first token's); or
    `own`: the head that the architecture itself has for sequences. Empty: what a sentence-transformers folder says,
    otherwise `own`."""
    dropout: float = 0.1
    """In front of a new linear head, from 0 to below 1."""
    config: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies defaults
    """Fields of the folder's config.json to change, such as `attention_probs_dropout_prob = 0.0`."""


class PooledClassifier(nn.Module):
    """An encoder, one vector per text of its tokens' vectors, brought to unit variance, and a linear layer."""

    def __init__(self, model: Any, pool: str, dropout: float, outputs: int) -> None:
        super().__init__()
        self.model = model
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(int(model.config.hidden_size), outputs)
        nn.init.normal_(self.head.weight, std=0.02)  # as Devlin et al. 2019 begin every new layer
        nn.init.zeros_(self.head.bias)

    def features(self, ids_bt: Tensor, mask_bt: Tensor) -> Tensor:
        """Return one vector [b, d] per text."""
        hidden_btd = self.model(input_ids=ids_bt, attention_mask=mask_bt, return_dict=True).last_hidden_state
        if self.pool == "cls":
            return cast("Tensor", hidden_btd[:, 0])
        own_bt1 = mask_bt.unsqueeze(2).to(hidden_btd.dtype)
        if self.pool == "mean":
            return cast("Tensor", (hidden_btd * own_bt1).sum(dim=1) / own_bt1.sum(dim=1).clamp(min=1.0))
        return cast("Tensor", hidden_btd.masked_fill(own_bt1 == 0, torch.finfo(hidden_btd.dtype).min).amax(dim=1))

    def forward(self, ids_bt: Tensor, mask_bt: Tensor) -> Tensor:
        """Return the logits [b, k] of texts; the mask is 1 for tokens and 0 for padding."""
        # Averages of many tokens' vectors are small, and a new layer would be slow to grow on them.
        normed_bd = F.layer_norm(self.features(ids_bt, mask_bt), (self.head.in_features,))
        return cast("Tensor", self.head(self.dropout(normed_bd)))


class OwnClassifier(nn.Module):
    """A model that is a classifier of sequences by its own architecture."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_bt: Tensor, mask_bt: Tensor) -> Tensor:
        """Return the logits [b, k] of texts; the mask is 1 for tokens and 0 for padding."""
        return cast("Tensor", self.model(input_ids=ids_bt, attention_mask=mask_bt, return_dict=True).logits)


class TiedHead(nn.Module):
    """A last layer whose weights are the table of tokens: one parameter, however often it is used."""

    def __init__(self, table: nn.Embedding, bias: nn.Parameter | None) -> None:
        super().__init__()
        # In a list, so that the table stays where it is: neither saved twice nor adapted as a layer of its own.
        self._table = [table]
        self.bias = bias

    def forward(self, hidden_btd: Tensor) -> Tensor:
        """Return the logits [b, t, v]."""
        return F.linear(hidden_btd, self._table[0].weight, self.bias)


class CausalModel(nn.Module):
    """A language model: for each token of a text the logits of the next one."""

    def __init__(self, model: Any, outputs: int) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs
        """Tokens that the tokenizer knows; tables are often larger, to be of a round size."""
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        if isinstance(table, nn.Embedding) and head is not None and head.weight is table.weight:
            model.set_output_embeddings(TiedHead(table, getattr(head, "bias", None)))

    def forward(self, ids_bt: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return [b, t, v]: behind each token the logits of the next one, from that token and those before it.

        A mask is taken and not needed: padding stands behind a text, where none of its tokens looks.
        """
        del mask
        found = self.model(input_ids=ids_bt.to(torch.int64), use_cache=False, return_dict=True)
        return cast("Tensor", found.logits[:, :, : self.outputs])


def build_pretrained(
    start: Start, options: "Mapping[str, Any]", given: ModelInput, outputs: int, *, with_weights: bool
) -> tuple[nn.Module, set[str] | None]:
    """Return the module of a folder, and the names of its parameters that begin anew: those of the head.

    None instead of names: no head begins anew, and the last layer is one. A language model has none. Without weights
    the module has the folder's architecture only, for weights that a training has left. Torch's generator decides the
    new parameters. Raises InvalidInput, or PluginError for a missing library.
    """
    chosen = from_plain(dict(options), PretrainedOptions, where="[model] options of a model with init")
    pool = chosen.pool or start.pooling or "own"
    if pool not in _POOLS:
        raise InvalidInput(f"[model] pool = {pool!r} is not known; known are: {', '.join(_POOLS)}")
    if not 0 <= chosen.dropout < 1:
        raise InvalidInput(f"[model] dropout = {chosen.dropout:g} must be from 0 to below 1")
    if not given.is_text:
        raise InvalidInput(
            f"[model] init names a model of texts, but the data has samples of {given}",
            hint='name the column of texts: [data] text = "..."',
        )
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise missing(error, "hf") from error
    if outputs == given.vocabulary:
        return _language_model(transformers, start, chosen, given, with_weights=with_weights), set()
    with silence():
        config = _config(transformers, start, chosen, given)
        kind = transformers.AutoModelForSequenceClassification if pool == "own" else transformers.AutoModel
        if pool == "own":
            config.num_labels = outputs
        model, absent = _load(kind, start, config) if with_weights else (_empty(kind, start, config), set())
    if pool == "own":
        return OwnClassifier(model), {f"model.{name}" for name in absent} or None
    # The tokens' vectors are all that is used; what stands behind them can't learn.
    if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
        model.pooler = None
    return PooledClassifier(model, pool, chosen.dropout, outputs), {"head.weight", "head.bias"}


def _language_model(
    transformers: Any, start: Start, chosen: PretrainedOptions, given: ModelInput, *, with_weights: bool
) -> CausalModel:
    if chosen.pool:
        raise InvalidInput("[model] options pool is for classifiers; a language model answers for every token")
    with silence():
        config = _config(transformers, start, chosen, given)
        kind = transformers.AutoModelForCausalLM
        model, absent = _load(kind, start, config) if with_weights else (_empty(kind, start, config), set())
    if absent:
        raise InvalidInput(
            f"'{start.transformer}' has no weights for the next token: {', '.join(sorted(absent)[:3])} would begin "
            "anew",
            hint="name the folder of a causal language model, such as GPT-2 or Llama",
            code="unsupported_model",
        )
    _as_linear(transformers, model)
    return CausalModel(model, given.vocabulary)


def _as_linear(transformers: Any, model: nn.Module) -> None:
    """Replace GPT-2's own layer, a linear one with its weights turned, by the usual one, which adapters know."""
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, transformers.pytorch_utils.Conv1D):
                inputs, outputs = layer.weight.shape
                linear = nn.Linear(inputs, outputs, device="meta")
                linear.weight = nn.Parameter(layer.weight.detach().t().contiguous())
                linear.bias = layer.bias
                setattr(module, name, linear)


def _config(transformers: Any, start: Start, chosen: PretrainedOptions, given: ModelInput) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(
            start.transformer, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise _cannot(start, error) from error
    unknown = [name for name in chosen.config if not hasattr(config, name)]
    if unknown:
        raise InvalidInput(
            f"[model] options config names {unknown[0]!r}, which the config.json of '{start.transformer}' doesn't have",
            hint=f"it has: {', '.join(sorted(config.to_dict()))[:600]}",
        )
    for name, value in chosen.config.items():
        setattr(config, name, value)
    if start.most_tokens and given.shape[0] > start.most_tokens:
        raise InvalidInput(
            f"texts have up to {given.shape[0]} tokens, but the model in '{start.transformer}' reads "
            f"{start.most_tokens}",
            hint=f"set [data] max_length, or context for a language model, to {start.most_tokens} or less",
        )
    if config.pad_token_id is None:
        config.pad_token_id = given.pad_id
    known = int(getattr(config, "vocab_size", given.vocabulary))
    if known < given.vocabulary:
        raise InvalidInput(
            f"the tokenizer has {given.vocabulary} tokens, but the model in '{start.transformer}' knows {known}",
            hint="leave [data] tokenizer out: the folder's own is then used",
        )
    return config


def _load(kind: Any, start: Start, config: Any) -> tuple[Any, set[str]]:
    try:
        # eager: plain matrix products and a softmax, the same to the bit on every run, and the best graph to export.
        model, info = kind.from_pretrained(
            start.transformer,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head for another number of classes
            output_loading_info=True,
        )
    except Exception as error:
        raise _cannot(start, error) from error
    absent = {str(name) for name in info["missing_keys"]}
    absent |= {str(found[0] if isinstance(found, tuple) else found) for found in info["mismatched_keys"]}
    inside = sorted(name for name in absent if _is_inside(model, name))
    if inside:
        raise InvalidInput(
            f"the weights in '{start.transformer}' are not those its config.json describes: "
            f"{', '.join(inside[:3])} are missing or differ in shape",
            code="other_model",
        )
    return model, {name for name, _ in model.named_parameters() if name in absent}


def _is_inside(model: Any, name: str) -> bool:
    """Whether a parameter is one of the encoder's, so that it can't begin anew. Poolers often weren't saved."""
    prefix = f"{model.base_model_prefix}."
    is_encoder = name.startswith(prefix) if hasattr(model, model.base_model_prefix) else True
    return is_encoder and "pooler" not in name


def _empty(kind: Any, start: Start, config: Any) -> Any:
    try:
        return kind.from_config(config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise _cannot(start, error) from error


def _cannot(start: Start, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"transformers can't load '{start.transformer}': {told(error)}",
        hint="update transformers if the model is newer than it; see what it knows: "
        "AutoModelForSequenceClassification, and AutoModelForCausalLM for language models",
        code="unsupported_model",
    )
