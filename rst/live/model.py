"""PEFT's methods for sparse deltas: load, set, disable, merge and save adapters of one base, exactly and in place.

The active adapter is written into the base's own weights, and switching to another one swaps the changed elements. The
forward pass is that of the base, at the same speed.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rst.checkpoints.transformers_files import coordinates_of
from rst.config import RSTConfig
from rst.delta.file import load_delta
from rst.delta.sparse_delta import Encoding, SparseDelta
from rst.errors import ConfigError
from rst.live.adapter_bank import BASE, AdapterBank
from rst.live.adapter_folder import adapter_subfolder, write_adapter
from rst.live.adapters import TrainingAdapter
from rst.live.apply import places_of
from rst.live.hub import find_adapter, push_adapter
from rst.live.model_status import ModelStatus
from rst.naming import unwrap
from rst.numerics.exactness import is_plain
from rst.quantized.layers import quantized_layers
from rst.training.support import Support
from rst.training.trainer import ResidualSparseTrainer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rst.live.hub import HubOptions, PushOptions
    from rst.operations.combine import MajoritySignMethod, Method


class RSTModel(nn.Module):
    """A base model and its adapters, at most one of them active.

    >>> model = RSTModel.from_pretrained(base, "ar2cl/")
    >>> model.load_adapter("pr2cl/", adapter_name="pr2cl")
    >>> model.set_adapter("pr2cl")
    >>> with model.disable_adapter():
    ...     model(images)  # the base, bit for bit
    >>> tuned = model.merge_and_unload()

    The base is changed in place. It is available as `base_model`, and attributes that `RSTModel` lacks (`generate`,
    `config`) are looked up there.
    """

    base_model: nn.Module
    _wraps = "base_model"  # for rst.naming.unwrap

    def __init__(
        self,
        model: nn.Module,
        config: RSTConfig | None = None,
        adapter_name: str = "default",
        *,
        support: Support | None = None,
    ) -> None:
        """Wrap a base model; with a configuration, start training an adapter (see `get_rst_model`)."""
        super().__init__()
        self.base_model = model
        self._bank = AdapterBank(model)
        if config is not None:
            self._bank.train(adapter_name, config, support=support)

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Run the base model with the active adapter.

        Args:
            *args: the base model's arguments.
            adapter_names: the adapter of each sample of the batch, or "__base__" for the base. A single forward pass
                computes all of them (Eq. 15); see `rst.mixed.batch`. The active adapter is ignored. While adapters are
                disabled, all samples use the base, as in PEFT.
            **kwargs: the base model's keyword arguments.
        """
        if adapter_names is None:
            return self.base_model(*args, **kwargs)
        return self._mixed("__call__", adapter_names, args, kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Run transformers' `generate` with the active adapter, or with one adapter per sample, as in `forward`."""
        if adapter_names is None:
            return self.base_model.generate(*args, **kwargs)  # type: ignore[operator]
        settings = kwargs.get("generation_config") or getattr(self.base_model, "generation_config", None)
        beams = [
            kwargs.get(name) or getattr(settings, name, None) or 1 for name in ("num_beams", "num_return_sequences")
        ]
        return self._mixed("generate", adapter_names, args, kwargs, repeats=max(beams))

    def _mixed(
        self, method: str, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], repeats: int = 1
    ) -> Any:
        from rst.mixed.batch import mixed_call

        self._bank.check(names)
        if not self._bank.enabled:
            names = [BASE] * len(names)
        deltas = {name: self._bank.delta(name) for name in {*names} - {BASE}}
        with self._bank.disabled():
            return mixed_call(unwrap(self.base_model), deltas, names, args, kwargs, method=method, repeats=repeats)

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        **hub: "Unpack[HubOptions]",
    ) -> "RSTModel":
        """Wrap `model` and load its first adapter, which becomes active. See `load_adapter`.

        Unless the adapter is trainable, the model is then in eval mode and no parameter requires a gradient, as in
        PEFT. `unload` and `merge_and_unload` restore the original `requires_grad`.
        """
        wrapped = cls(model)
        wrapped.load_adapter(model_id, adapter_name, is_trainable, **hub)
        if not is_trainable:
            wrapped._bank.freeze()
            wrapped.eval()
        return wrapped

    def load_adapter(
        self,
        model_id: str | os.PathLike[str],
        adapter_name: str,
        is_trainable: bool = False,
        **hub: "Unpack[HubOptions]",
    ) -> None:
        """Read an adapter and check it against the base. The first one becomes active.

        Args:
            model_id: a folder that `save_pretrained` wrote, a delta's file, or a repository on the hub.
            adapter_name: the name for the adapter.
            is_trainable: whether to continue training the adapter, which then becomes active.
            **hub: the revision, the subfolder and so on; see `rst.live.hub.HubOptions`.

        Raises:
            CheckpointError: the adapter does not exist.
            ConfigError: the name is taken, or a keyword is unknown.
            DeltaFormatError: the adapter is damaged.
            ParameterMismatchError: the adapter belongs to another architecture.
            WrongBaseError: the adapter belongs to other weights. The model is unchanged in every case.
        """
        self.add_adapter(adapter_name, load_delta(find_adapter(model_id, **hub)), is_trainable)

    def add_adapter(
        self,
        adapter_name: str,
        adapter: SparseDelta | RSTConfig | str | os.PathLike[str],
        is_trainable: bool = False,
        *,
        support: Support | None = None,
    ) -> None:
        """Add a delta or, given a configuration, start training a new adapter, which becomes active.

        Args:
            adapter_name: the name for the adapter.
            adapter: a delta, its file or an adapter's folder; or a configuration.
            is_trainable: whether to continue training a delta.
            support: the weights to train with `select="support"`. By default, a delta's training continues at the
                weights that it changes.

        Raises:
            ConfigError: the name is taken, a delta to be trained has no settings, or the given support is not trained.
            RSTError: the errors of `load_adapter`.
        """
        if isinstance(adapter, RSTConfig):
            self._bank.train(adapter_name, adapter, support=support)
            return
        if support is not None and not is_trainable:
            raise ConfigError(
                f"{adapter_name}: {support!r} for a delta that is not trained; pass is_trainable=True to train it"
            )
        adapter = load_delta(adapter)
        if is_trainable:
            if not adapter.config:
                raise ConfigError(
                    f"{adapter_name}: the delta contains no settings, which are needed to continue its training"
                )
            self._bank.train(adapter_name, RSTConfig.from_dict(dict(adapter.config)), start=adapter, support=support)
        else:
            self._bank.add(adapter_name, adapter)

    def hotswap_adapter(
        self, model_id: str | os.PathLike[str], adapter_name: str = "default", **hub: "Unpack[HubOptions]"
    ) -> None:
        """Replace a loaded adapter by another one under the same name, also in the weights if it is active.

        Raises:
            RSTError: the errors of `load_adapter`, or no adapter of this name is loaded. Nothing has changed then.
        """
        self._bank.replace(adapter_name, load_delta(find_adapter(model_id, **hub)))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        selected_adapters: Sequence[str] | None = None,
        *,
        encoding: Encoding = "coo",
    ) -> None:
        """Write adapters as folders: "default" into `save_directory`, the others into subfolders with their names.

        Args:
            save_directory: the folder to write to, which is created if it does not exist.
            selected_adapters: the names of the adapters to save; all by default.
            encoding: "coo" can be read with safetensors alone; "packed" takes a third of the bytes or less.

        Raises:
            ConfigError: an adapter does not exist, or its name cannot be that of a folder.
            OSError: the folder cannot be written.
        """
        names = list(self._bank) if selected_adapters is None else selected_adapters
        folders = {name: adapter_subfolder(Path(save_directory), name) for name in names}
        for name, folder in folders.items():
            write_adapter(folder, self.get_delta(name), encoding)

    def push_to_hub(self, repo_id: str, adapter_name: str | None = None, **options: "Unpack[PushOptions]") -> str:
        """Upload an adapter, by default the active one, and return the commit's URL; see `push_adapter`."""
        return push_adapter(self.get_delta(adapter_name), repo_id, **options)

    # Choosing

    @property
    def adapter_names(self) -> list[str]:
        """The names of all loaded adapters."""
        return list(self._bank)

    @property
    def active_adapter(self) -> str | None:
        """The name of the adapter that is active, or becomes active when adapters are enabled."""
        return self._bank.active

    @property
    def active_adapters(self) -> list[str]:
        """The name of the active adapter in a list, as transformers expects it."""
        return [] if self._bank.active is None else [self._bank.active]

    def set_adapter(self, adapter_name: str) -> None:
        """Make another adapter the active one, and enable adapters.

        Raises:
            ConfigError: the adapter does not exist, or several are named.
            RSTError: the base no longer has the weights that the adapter was made from. The previous adapter stays
                active.
        """
        self._bank.activate(self._only([adapter_name] if isinstance(adapter_name, str) else adapter_name))

    def delete_adapter(self, adapter_name: str) -> None:
        """Drop an adapter. If it is active, the first of the others becomes active, as in PEFT.

        Raises:
            ConfigError: the adapter does not exist.
            WrongBaseError: the adapter is active, and its weights were changed since; see `PreparedDelta.remove`.
        """
        self._bank.delete(adapter_name)

    def disable_adapters(self) -> None:
        """Restore the base's weights, bit for bit, until `enable_adapters` or `set_adapter`."""
        self._bank.disable()

    def enable_adapters(self) -> None:
        """Apply the active adapter again."""
        self._bank.enable()

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Disable adapters inside a `with` block, where the model is the base, bit for bit."""
        return self._bank.disabled()

    # Merging

    def merge_adapter(self, adapter_names: Sequence[str] | None = None) -> None:
        """Write one adapter, by default the active one, into the base's weights, as `set_adapter` does.

        Raises:
            ConfigError: several adapters are named, or none is named and none is active.
        """
        self._bank.activate(self._only(self.active_adapters if adapter_names is None else adapter_names))

    def unmerge_adapter(self) -> None:
        """Restore the base's weights, bit for bit, as `disable_adapters` does."""
        self._bank.disable()

    def merge_and_unload(self, adapter_names: Sequence[str] | None = None) -> nn.Module:
        """Merge one adapter into the base's weights permanently, drop all adapters and return the base model.

        Raises:
            ConfigError: as in `merge_adapter`, or the adapter changes a quantised layer, whose weights cannot hold a
                change.
        """
        name = self._only(self.active_adapters if adapter_names is None else adapter_names)
        if beside := self._bank.beside_quantized(name):
            raise ConfigError(
                f"quantised by {beside[0].target.scheme}, so {len(beside)} layers cannot hold the change; merge the "
                "delta into the float base (rst.merge), which gives another model, or keep the adapter on",
                parameter=beside[0].target.name,
            )
        self.merge_adapter(adapter_names)
        if self.trainer is not None:
            self.trainer.export()  # this selects, so that the weights equal base plus delta
        self._bank.clear()
        return self.base_model

    def unload(self) -> nn.Module:
        """Drop all adapters and return the base model with its original bytes."""
        self._bank.discard()
        return self.base_model

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: "Method" = "linear",
        density: float | None = None,
        majority_sign_method: "MajoritySignMethod" = "total",
        whole_from: str | None = None,
    ) -> None:
        """Combine adapters into a new one, in time proportional to their changed weights. See `rst.combine`.

        Args:
            adapters: the names of the adapters.
            weights: one factor per adapter.
            adapter_name: the name for the new adapter.
            combination_type: how to combine them; see `rst.combine`, also for the next two arguments.
            density: the share of the changed weights to keep of each adapter.
            majority_sign_method: how a sign is elected.
            whole_from: the adapter among `adapters` whose tensors stored whole (heads, buffers) the new one gets. They
                have no residuals that could be averaged. By default, those of all adapters must agree in every bit.

        Raises:
            ConfigError: an adapter or the combination is unknown, or the name is taken.
            ParameterMismatchError: tensors stored whole differ, and `whole_from` does not say which to take.
        """
        from rst.operations.combine import combine

        deltas = {name: self.get_delta(name) for name in adapters}
        if whole_from is not None and whole_from not in deltas:
            raise ConfigError(f"whole_from={whole_from!r}: choose one of {list(deltas)}")
        combined = combine(
            [deltas[name] if whole_from is None else deltas[name].sparse_only() for name in adapters],
            weights,
            method=combination_type,
            density=density,
            majority_sign_method=majority_sign_method,
        )
        if whole_from is not None:
            whole = deltas[whole_from]
            tied = {alias: owner for alias, owner in whole.tied.items() if owner in whole.dense}
            combined = replace(
                combined,
                parameters={name: change for name, change in combined.items() if name not in whole.dense},
                dense=whole.dense,
                buffers=whole.buffers,
                tied={**combined.tied, **tied},
            )
        self._bank.add(adapter_name, combined)

    # Inspecting

    @property
    def trainer(self) -> ResidualSparseTrainer | None:
        """The trainer of the active adapter, for `model.trainer.attach(optimizer)`; None if that is not in training."""
        active = None if self._bank.active is None else self._bank[self._bank.active]
        return active.trainer if isinstance(active, TrainingAdapter) else None

    def get_delta(self, adapter_name: str | None = None) -> SparseDelta:
        """Return the delta of an adapter, by default the active one. Raises `ConfigError` if there is none."""
        return self._bank.delta(self._only(self.active_adapters) if adapter_name is None else adapter_name)

    def get_model_status(self) -> ModelStatus:
        """Return which adapters are loaded, active and trainable, and on which devices."""
        return ModelStatus.of(self.base_model, self._bank)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, and how many of them would be stored."""
        print(self.get_model_status().parameters_line())

    def get_base_model(self) -> nn.Module:
        """Return the wrapped model, with the active adapter in its weights."""
        return self.base_model

    def __getattr__(self, name: str) -> Any:
        """Look up attributes that this class lacks in the base model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # before base_model is set, the lookup would recurse; __deepcopy__ and the like are the base's own
            if name == "base_model" or name.startswith("__"):
                raise
            return getattr(self.base_model, name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RSTModel":
        """Move or cast (`to`, `cuda`, `half`) the base without its adapters, so that both stay exact."""
        dtypes = {}
        quantized = {id(one.layer.weight) for one in quantized_layers(self.base_model).values()}
        for name, place in places_of(unwrap(self.base_model)).items():  # by every name, including those of tied tensors
            if place.tensor is not None and id(place.tensor) not in quantized:
                tensor = place.tensor.detach()
                dtypes[name] = fn(tensor.new_empty(0)).dtype if is_plain(tensor) else tensor.dtype
        files = coordinates_of(self.base_model).files.values()
        dtypes = {one.name: dtypes[one.sources[0]] for one in files if one.sources[0] in dtypes} | dtypes
        self._bank.move(dtypes, lambda: nn.Module._apply(self, fn, recurse))  # type: ignore[no-untyped-call]
        return self

    def _only(self, names: Sequence[str]) -> str:
        if not names:
            raise ConfigError(f"no adapter is active; choose one of {self.adapter_names}")
        if len(names) != 1:
            raise ConfigError(
                f"only one adapter can be active at a time, got {list(names)}; add_weighted_adapter combines them"
            )
        return names[0]


def get_rst_model(
    model: nn.Module, config: RSTConfig, adapter_name: str = "default", *, support: Support | None = None
) -> RSTModel:
    """Wrap a pretrained model to train an adapter on it, as `peft.get_peft_model` does.

    >>> model = get_rst_model(model, RSTConfig(ratio=0.001, modules_to_save=["head"]))
    >>> model.trainer.attach(optimizer)
    >>> ...  # train as always
    >>> model.save_pretrained("ar2cl/")

    Raises:
        RSTError: the errors of `ResidualSparseTrainer`.
    """
    return RSTModel(model, config, adapter_name, support=support)
