"""How Transformers opens a container: a quantizer that is registered there by ``import modicum``.

It stands outside ``export``, whose contents import Transformers: this file is read while Transformers is being imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin
from typing_extensions import override

if TYPE_CHECKING:
    from modicum.export.opening import Opening

NAME = "modicum"


class ContainerConfig(QuantizationConfigMixin):
    """What ``config.json`` says of a container under ``quantization_config``."""

    def __init__(self, **kept: Any):
        self.quant_method: Any = NAME
        # What is opened is an ordinary dense module, which may be cast, trained and saved: Transformers strikes this config then.
        self.dequantize = True
        self.kept = kept

    @override
    def to_dict(self) -> dict[str, Any]:
        return {**self.kept, "quant_method": NAME}


class ContainerQuantizer(HfQuantizer):
    """Restores every weight from its form while Transformers loads it: base models, heads, ties, devices and dtypes are Transformers' business."""

    requires_calibration = True  # from_pretrained(..., quantization_config=...) cannot make a container

    def __init__(self, quantization_config: Any, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.opening: Opening | None = None

    @override
    def update_attn_implementation(self, config: Any) -> Any:
        """Called with the config before files are looked for."""
        from modicum.export.opening import admit

        return admit(config)

    # Earlier versions show the config in this call alone.
    update_tp_plan = update_attn_implementation

    @override
    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **_: Any) -> Any:
        from modicum.export.opening import Opening

        self.opening = Opening.of(model, checkpoint_files)
        return model

    @override
    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        if not getattr(converter, "restores", False):
            return super().get_new_dtype(converter, param, dtype)
        converter.operation.dtype = dtype  # for what is made of the parts, which are read as they are
        return None

    @override
    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if self.opening is not None:
            self.opening.finish()
        return model

    @override
    def get_weight_conversions(self) -> list[Any]:
        return [] if self.opening is None else self.opening.conversions()

    @override
    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        """The container's names are those of the module: the conversions of checkpoints on the hub do not apply.

        Before 5.21 Transformers gives no model.
        """
        return self.get_weight_conversions()

    @override
    def is_serializable(self) -> bool:
        return False

    @property
    @override
    def is_trainable(self) -> bool:
        return True
