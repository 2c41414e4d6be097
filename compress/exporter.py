"""The seam of exporters: a traced or quantised module becomes one self-contained file that an engine runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import fx


@dataclass(frozen=True)
class ExportedFile:
    """One exported file.

    Attributes:
        path: where it lies.
        file_bytes: its size.
        dynamic_batch: whether it takes any batch size; otherwise only that of the example inputs.
        input_names: in the order of the flat tensor inputs.
    """

    path: Path
    file_bytes: int
    dynamic_batch: bool
    input_names: tuple[str, ...]


@runtime_checkable
class Exporter(Protocol):
    """Writes a module as a file, in evaluation mode. The module stays as it is."""

    name: str
    suffix: str

    def export(self, module: fx.GraphModule, example_inputs: Any, path: str | Path) -> ExportedFile:
        """The file written to `path`, atomically.

        Args:
            module: a traced module, or one from `prepare_quantized`, which becomes a file of low-bit integers.
            example_inputs: a tensor, or a tuple or dict of the forward's inputs.

        Raises:
            ExportError: if some operation cannot be expressed, naming it.
        """
