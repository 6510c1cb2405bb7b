"""Canonical names of weights, the same for plain and wrapped modules and checkpoints (compiled, averaged, parallel)."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from torch import nn
from torch.optim.swa_utils import AveragedModel

from rst.config import Patterns
from rst.errors import ConfigError

# The attribute under which torch.compile, checkpoint_wrapper, FSDP1 and Lightning's Fabric hold the wrapped module.
_INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module")
_UNWRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_forward_module")  # FSDP shards what it wraps
# The names of data parallelism and RSTModel; submodules use them too, so they are removed only if all names have them.
_ONLY_CHILD = ("module.", "base_model.")
_AVERAGES = "n_averaged"  # AveragedModel's own buffer
_MOST_PREFIXES = 64  # to try; the one that explains most names is among the most frequent
_LONGEST = 4096  # characters of a name that a regular expression is matched against
_LONGEST_SHOWN, _MOST_COMPARED = 200, 1000
_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))  # LayerNorm's names in old BERT checkpoints


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside all of its `wrappers`."""
    return wrappers(module)[-1]


def wrappers(module: nn.Module) -> list[nn.Module]:
    """Return a module and the modules it wraps, outermost first.

    Wrappers are those of torch.compile, data parallelism, `AveragedModel`, `checkpoint_wrapper` and Fabric, and
    `RSTModel`.
    """
    found = [module]
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            module = module.module
        else:
            # A scripted module has these names but does not give access to its parts; the last name is RSTModel's.
            names = (*_UNWRAPPED, getattr(type(module), "_wraps", None))
            inside = [one for name in names if name and isinstance(one := getattr(module, name, None), nn.Module)]
            if not inside:
                return found
            module = inside[0]
        found.append(module)


def plain_name(name: str) -> str:
    """Return a tensor's name without the parts that wrappers insert, wherever they are."""
    if not any(inside in name for inside in _INSIDE):
        return name
    return ".".join(part for part in name.split(".") if part not in _INSIDE)


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to the plain module's name for it.

    `_orig_mod.` and similar names belong to wrappers and are removed anywhere; `module.` and `base_model.` are removed
    only if every name starts with them, because a model may have a submodule of that name. `AveragedModel`'s counter is
    left out.
    """
    plain = {name: plain_name(name) for name in names}
    if _AVERAGES in plain and _common_child(name for name in plain.values() if name != _AVERAGES) == "module.":
        del plain[_AVERAGES]
    shared, start = os.path.commonprefix(list(plain.values())), 0  # noqa: RUF071  (looked at once: it may be immense)
    while child := next((child for child in _ONLY_CHILD if shared.startswith(child, start)), None):
        start += len(child)
    return {original: name[start:] for original, name in plain.items()}


def _common_child(names: Iterable[str]) -> str | None:
    """Return the prefix among `_ONLY_CHILD` that all names start with."""
    known = list(names)
    return next((child for child in _ONLY_CHILD if known and all(name.startswith(child) for name in known)), None)


def own_prefix(names: Iterable[str]) -> str:
    """Return the prefix that `canonical_names` removes from all `names`; a plain module's is its only child."""
    shortened = canonical_names(names)
    return next((name.removesuffix(plain) for name, plain in shortened.items() if name.endswith(plain)), "")


def other_spellings(name: str, prefix: str = "") -> list[str]:
    """Return other spellings of a name in files of the same model: with or without `prefix`, or old LayerNorm names."""
    names = [name]
    if prefix:
        without = name.removeprefix(f"{prefix}.")
        names.append(without if without != name else f"{prefix}.{name}")
    for old, new in _OLD_NAMES:
        names += [other.removesuffix(new) + old for other in names if other.endswith(new)]
        names += [other.removesuffix(old) + new for other in names if other.endswith(old)]
    return names[1:]


def respelled(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Map names in `wanted` that `names` lacks to their spelling in `names`, if one prefix explains most of them.

    >>> respelled(["h.0.weight", "h.1.weight"], ["transformer.h.0.weight", "score.weight"])
    {'transformer.h.0.weight': 'h.0.weight'}
    """
    missing = [name for name in wanted if name not in names]
    firsts = Counter(name.partition(".")[0] for name in (*missing, *names)) if missing else Counter()
    best: dict[str, str] = {}
    for prefix in ("", *sorted(prefix for prefix, _ in firsts.most_common(_MOST_PREFIXES))):
        spelled = {name: other for name in missing for other in other_spellings(name, prefix) if other in names}
        if len(spelled) > len(best):
            best = spelled
    return best


def matches(name: str, patterns: Patterns) -> bool:
    """Return whether `patterns`, read as PEFT reads them, match the parameter `name` or a module above it.

    A string is a regular expression for a whole name; a list holds names or suffixes at a dot. Raises `ConfigError` for
    a name of more than 4096 characters, which is not matched against regular expressions.

    >>> matches("blocks.0.attn.weight", ["attn"]), matches("blocks.0.attn.weight", r"blocks\\.[01]\\..*")
    (True, True)
    """
    if patterns is None:
        return False
    if isinstance(patterns, str):
        if len(name) > _LONGEST:
            raise ConfigError(
                f"a name of {len(name)} characters; patterns can match at most {_LONGEST}", parameter=name[:99]
            )
        parts = name.split(".")
        return any(re.fullmatch(patterns, ".".join(parts[:end])) for end in range(1, len(parts) + 1))
    dotted = f".{name}."
    return any(f".{pattern}." in dotted for pattern in patterns)


def is_bias(name: str) -> bool:
    """Return whether a parameter is a bias by its name: `bias`, and fused ones such as `in_proj_bias`."""
    return name.endswith("bias")


def check_regular(setting: str, patterns: Patterns) -> None:
    """Raise `ConfigError` if `patterns` is a string that is not a valid regular expression."""
    if isinstance(patterns, str):
        try:
            re.compile(patterns)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"{setting}: {patterns[:99]!r} is not a regular expression ({error})") from error


def check_patterns(setting: str, patterns: Patterns, names: Sequence[str]) -> None:
    """Raise `ConfigError`, with similar names, if one of `patterns` matches none of `names`."""
    check_regular(setting, patterns)
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        single: Patterns = pattern if isinstance(patterns, str) else [pattern]
        if not any(matches(name, single) for name in names):
            known = sorted(
                {part for name in names for part in name.split(".")[:-1] if not part.isdigit()} or set(names)
            )
            known = [name for name in known if len(name) < _LONGEST_SHOWN][:_MOST_COMPARED]
            near = difflib.get_close_matches(pattern[:_LONGEST_SHOWN], known, n=3, cutoff=0.3) or known[:5]
            raise ConfigError(
                f"{setting}: {pattern[:_LONGEST_SHOWN]!r} matches no parameter; parameters are, for example, {near}"
            )
