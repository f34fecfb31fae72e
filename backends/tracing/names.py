"""What a network calls its modules, parameters, buffers and other tensors."""

from __future__ import annotations

from torch import Tensor, nn

from ...copies import plain_tensors
from ...lending import storage_of
from .convolutions import kernel_positions


class Names:
    """The names of a network's modules and tensors; what is in several places has the first one.

    Attributes:
        modules: paths by the `id` of a module.
        parameters: by name.
    """

    def __init__(self, network: nn.Module) -> None:
        self.modules: dict[int, str] = {}
        self.parameters: dict[str, Tensor] = {}
        self._tensors: dict[int, str] = {}
        self._memories: dict[int, str] = {}
        self._kernels: dict[int, tuple[int, ...]] = {}
        for path, module in network.named_modules():
            self.modules[id(module)] = path
            for key, tensor in [*module._parameters.items(), *module._buffers.items(), *plain_tensors(module).items()]:
                if tensor is None or id(tensor) in self._tensors:
                    continue
                name = self._tensors[id(tensor)] = f"{path}.{key}" if path else key
                if key in module._parameters:
                    self.parameters[name] = tensor
                    self._memories.setdefault(storage_of(tensor), name)
            if isinstance(module, nn.modules.conv._ConvNd):
                self._kernels[id(module.weight)] = kernel_positions(module)

    def of(self, tensor: Tensor) -> str | None:
        """The name of a parameter, a buffer or a plain attribute; None of any other tensor."""
        return self._tensors.get(id(tensor))

    def of_memory(self, storage: int) -> str | None:
        """The name of the parameter that lies there; None if none does."""
        return self._memories.get(storage)

    def without_channels(self, tensor: Tensor) -> tuple[int, ...]:
        """The dimensions of a kernel that have no channels."""
        return self._kernels.get(id(tensor), ())
