"""What the name of a member of a JSON object says: a parameter, a setting, or a holder of a model.

The lists hold names that programs use. A name that is in none of them says nothing.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

Grade = Literal["unique", "named", "short", "setting", "unknown"]
Role = Literal["weight", "bias", "other"]
#: What a member may hold: a state dict; a model, or its settings; nothing that is a tensor.
Holder = Literal["state_dict", "model", "closed", "unknown"]


class Part(NamedTuple):
    """What a name says.

    Attributes:
        grade: ``"unique"``: only parameters, buffers and optimizer moments have such a name.
            ``"named"``: a usual name of parameters, which settings have, too. ``"short"``: a name
            such as ``W1``, which may be anything. ``"setting"``: no parameter.
        role: what it is for its siblings.
        stem: the name without the role. The weight and the bias of a layer have the same one.
        dotted: the name is a path of modules with a parameter at its end.
    """

    grade: Grade
    role: Role
    stem: str
    dotted: bool


_UNIQUE = re.compile(
    r"running_(mean|var)|num_batches_tracked|(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?"
    r"|in_proj_(weight|bias)|[qkv]_proj_weight|exp_avg(_sq)?|max_exp_avg_sq|momentum_buffer"
    r"|square_avg|grad_avg|acc_delta|recurrent_kernel|(depth|point)wise_kernel"
    r"|moving_(mean|variance)|weight_(orig|mask|[uvg])|parametrizations"
)
_OTHER = re.compile(
    r"pos(ition)?_?(al_)?(embed|emb|embedding|embeddings|encoding)s?|(cls|mask|dist|reg)_token"
    r"|logit_(scale|bias)|inv_freq|position_ids|token_type_ids|relative_position_(index|bias_table)"
    r"|masked_bias|attn_mask|[ab]_log|dt_bias|lora_[ab]|original\d+|embeddings?|word_embeddings"
    r"|layer_?scale(_\d)?|running_std|scale|shift|alpha|temperature|zero_point|codebook|bias_[kv]"
    r"|step|pe"
)
_WEIGHT = re.compile(r"(.*?)(weights?|kernel|coefs?_)(.*)")
_BIAS = re.compile(r"(.*?)(bias(?:es)?|intercepts?_)(.*)")
#: Scale and shift of a norm: as many as the norm has features.
_PAIRS = {"gamma": ("norm", "weight"), "beta": ("norm", "bias")}
_SHORT = re.compile(r"([wuvb])(_[a-z0-9]{1,4}|[a-z]{0,2}\d{0,3})")
_SETTING = re.compile(
    r"(.*_)?(lr|lrs|learning_?rates?|epochs?|dropout|momentum|betas|eps|epsilon|decay|batch_?size"
    r"|hidden|hiddens?_?(dims?|sizes?|layers?|units|nodes|channels?|widths?)|dims?|dimensions?"
    r"|sizes?|shapes?|layer_sizes|channels|units|widths?|heights?|depths?|strides?|padding"
    r"|dilations?|kernel_sizes?|loss(es)?|acc|accuracy|accuracies|scores?|metrics?|auc|f1"
    r"|perplexity|seed|classes|labels?|ranges?|bounds|limits|milestones|schedule|steps_per_\w+"
    r"|anchors?|ratios?|thresholds?|iterations?|n_iter_|version|time|seconds|date"
    r"|outputs?|inputs?|errors?|deltas?|gradients?|activations?|changes|confusion(_matrix)?)"
    r"|(class|loss|sample|task|pos|label|category)_?weights?|weight_?(decay|init|sharing|norm)\w*"
    r"|(num|n|max|min)_\w+|(.*_)?(features|layers|nodes|neurons|filters|topology|heads)|(use|has|with|is)_\w+|weights?_(path|file|dtype)"
    r"|bias_?(init|correction)\w*|(use|no)_?bias"
)
_INTEGERS = re.compile(
    r"num_batches_tracked|n_averaged|(.*_)?(ids?|idx|index|indices|counts?|offsets?|lengths?"
    r"|permutation|perm)"
)
_CLOSED = re.compile(
    r"(.*_)?(config|configs|configuration|args|arguments|kwargs|hparams|h_params|hyper_?param\w*"
    r"|settings?|options?|history|histories|metrics?|logs?|results?|stats|statistics|meta|metadata"
    r"|info|param_groups|sched|scheduler|schedulers|scaler|rng|rng_state|random_state|callbacks?"
    r"|loops|vocab|tokenizer|model_data|trainopts|train_?opts)"
    r"|hyper_\w+|(lr_|amp_)?(scheduler|scaler)s?_\w+|rng_\w+"
)
_OPTIMIZER = re.compile(r"(.*_)?(optim|optimizer|optimizers|opt)(_.*|\d*)?")
_WORDS = (
    r"model|module|net|network|ema|generator|discriminator|encoder|decoder|student|teacher|policy"
    r"|critic|actor|backbone|head|classifier|unet|vae|swa|lora|averaged|average|avg|target|online"
    r"|best|raw|full|base|trained|final|torch|pytorch|[dgq]"
)
_STATE_DICT = re.compile(rf"((({_WORDS})_)*)(state_?dict|weights_dict)s?")
_MODEL = re.compile(
    rf"(.*_)?(model|models|module|modules|net|nets|network|ema|shadow|shadow_params|weights|params"
    rf"|param|parameters|state|state_?dict|layers|batch_stats|variables|{_WORDS})(_\d+|\d*)"
)


@lru_cache(maxsize=4096)
def _last_part(last: str) -> tuple[Grade, Role, str]:
    name = last.lower()
    if _UNIQUE.fullmatch(name):
        role: Role = "bias" if "bias" in name else "weight" if "weight" in name else "other"
        return "unique", role, name.replace(role, "")
    if _SETTING.fullmatch(name):
        return "setting", "other", name
    if _OTHER.fullmatch(name):
        return "named", "other", name
    if name in _PAIRS:
        stem, role = _PAIRS[name]  # type: ignore[assignment]
        return "named", role, stem
    for role, pattern in (("bias", _BIAS), ("weight", _WEIGHT)):
        if (match := pattern.fullmatch(name)) is not None:
            return "named", role, f"{match[1]}{match[3]}"
    if (match := _SHORT.fullmatch(name)) is not None:
        return "short", "bias" if match[1] == "b" else "weight", f"~{match[2]}"
    return "unknown", "other", name


def part_of(key: str) -> Part:
    """What the name of a member says.

    >>> part_of("layers.0.fc.weight")
    Part(grade='named', role='weight', stem='layers.0.fc.', dotted=True)
    >>> part_of("W1").stem == part_of("b1").stem, part_of("hidden_sizes").grade
    (True, 'setting')
    """
    return _part(key) if len(key) <= 64 else _part.__wrapped__(key)


@lru_cache(maxsize=4096)
def _part(key: str) -> Part:
    path, dot, last = key.rpartition(".")
    grade, role, stem = _last_part(last) if len(last) <= 64 else ("unknown", "other", last)
    return Part(grade, role, path + dot + stem, bool(dot) and bool(path))


@lru_cache(maxsize=4096)
def _holder(name: str) -> Holder:
    if _CLOSED.fullmatch(name):
        return "closed"
    if _OPTIMIZER.fullmatch(name):
        return "unknown"
    if _STATE_DICT.fullmatch(name):
        return "state_dict"
    return "model" if _MODEL.fullmatch(name) else "unknown"


def holder(key: str) -> Holder:
    """What a member of that name may hold.

    >>> holder("model_state_dict"), holder("net"), holder("config"), holder("scheduler_state_dict")
    ('state_dict', 'model', 'closed', 'closed')
    """
    return _holder(key.lower()) if len(key) <= 64 else "unknown"


def holds_integers(key: str) -> bool:
    """True if whole numbers under that name are counts or positions.

    >>> holds_integers("bn1.num_batches_tracked"), holds_integers("fc.bias")
    (True, False)
    """
    last = key.rpartition(".")[2].lower()
    return len(last) <= 64 and _INTEGERS.fullmatch(last) is not None
