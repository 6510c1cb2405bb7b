"""Loading an adapter together with the base model that it names, as `peft.AutoPeftModel` does."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rst.delta.file import CONFIG_FILE, read_settings
from rst.errors import CheckpointError, ConfigError
from rst.extras import install_command
from rst.live.hub import find_adapter
from rst.live.model import RSTModel

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rst.live.hub import HubOptions


class AutoRSTModel:
    """Loads an adapter and, through transformers, the base that its folder names.

    >>> model = AutoRSTModel.from_pretrained("ar2cl/")
    """

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        *,
        base_options: Mapping[str, Any] | None = None,
        **hub: "Unpack[HubOptions]",
    ) -> RSTModel:
        """Load the base in the class that its configuration names, and then the adapter, as `RSTModel.from_pretrained`.

        Args:
            model_id: an adapter's folder, or a repository on the hub.
            adapter_name: the name for the adapter.
            is_trainable: whether to continue training the adapter.
            base_options: options for the base's `from_pretrained` (dtype, device_map, ...).
            **hub: options for the adapter's repository; see `rst.live.hub.HubOptions`.

        Raises:
            CheckpointError: the adapter does not exist, it names no base, or the base cannot be loaded.
            RSTError: the errors of `RSTModel.load_adapter`.
        """
        settings = find_adapter(model_id, (CONFIG_FILE,), **hub)
        if settings.is_file():
            raise ConfigError(f"{model_id}: a file does not name its base; pass the adapter's folder")
        base = read_settings(settings)[1]
        if base.name is None:
            raise CheckpointError(
                f"does not name its base; load the base and call RSTModel.from_pretrained(base, "
                f"{os.fspath(model_id)!r})",
                file=settings / CONFIG_FILE,
            )
        model = _load_base(base.name, {"revision": base.revision} if base.revision else {}, dict(base_options or {}))
        return RSTModel.from_pretrained(model, model_id, adapter_name, is_trainable, **hub)


def _load_base(name: str, revision: dict[str, Any], options: dict[str, Any]) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError(f"{name}: loading a base model needs transformers: {install_command('peft')}") from error
    try:
        config = transformers.AutoConfig.from_pretrained(name, **revision)
        architecture = (config.architectures or [""])[0]
        found = getattr(transformers, architecture, None)
        if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
            raise ValueError(f"transformers has no model class {architecture!r}, which its configuration names")
        return found.from_pretrained(name, **revision, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: the base that the adapter names cannot be loaded ({error})") from error
