"""A linear layer whose weight is packed for the kernels."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferret_core.cpu.kernels import PANEL, Matrix, product

Precision = Literal["bfloat16", "int8"]


class PackedLinear(nn.Module):
    """`nn.Linear` for inference where it is, in bfloat16, or in int8 with one scale for each output.

    Each row of the result depends on its own row of the input only, to the last bit.
    """

    panels: Tensor
    scales: Tensor | None
    sums: Tensor | None
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, precision: Precision = "bfloat16") -> None:
        """
        Args:
            linear: on the CPU; one of bitsandbytes' with 8 bits will do, whose integers int8 takes as they are.
            precision: of the packed weight.

        Raises:
            ValueError: the number of inputs is odd, or for int8 no multiple of 16.
        """
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        if self.in_features % (multiple := 16 if precision == "int8" else 2):
            raise ValueError(f"{precision}: inputs must be a multiple of {multiple}, got {self.in_features}")
        (weight, scales), sums = _stored(linear), None
        if precision == "int8":
            if scales is None:
                weight = weight.float()
                scales = weight.abs().amax(1).clamp(min=1e-12) / 127
                weight = (weight / scales[:, None]).round().to(torch.int8)
            sums = weight.sum(1, dtype=torch.int32)
        else:
            weight = (weight if scales is None else weight * scales[:, None]).to(torch.bfloat16)
            scales = None
        padding, together = -self.out_features % PANEL, 4 // weight.itemsize
        panels = F.pad(weight, (0, 0, 0, padding)).view(-1, PANEL, self.in_features // together, together).transpose(1, 2)
        self.register_buffer("panels", panels.contiguous())
        bias = None if linear.bias is None else linear.bias.detach().float()
        for name, values in (("scales", scales), ("sums", sums), ("bias", bias)):
            self.register_buffer(name, None if values is None else F.pad(values, (0, padding)))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        raise RuntimeError("the model's weights are packed for this CPU: load it again to move or convert it")

    @property
    def precision(self) -> Precision:
        """Of the weight."""
        return "bfloat16" if self.scales is None else "int8"

    @property
    def matrix(self) -> Matrix:
        """For the kernels. Valid as long as this layer is."""
        pointers = (None if each is None else each.data_ptr() for each in (self.panels, self.scales, self.sums, self.bias))
        return Matrix(*pointers, self.out_features, self.in_features)

    @torch.inference_mode()
    def forward(self, rows: Tensor) -> Tensor:
        """`(..., inputs)` to `(..., outputs)`, in the dtype of the rows."""
        flat = rows.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        return product(self.matrix, flat).to(rows.dtype).view(*rows.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """For `print`."""
        return f"{self.in_features}, {self.out_features}, {self.precision}"


def pack(module: Any, name: str, precision: Precision = "bfloat16") -> PackedLinear:
    """Puts a packed layer in the place of `module.name`, unless there is one, so that no weight is held twice.

    Raises `ValueError` if there is one of another precision.
    """
    linear = getattr(module, name)
    if isinstance(linear, PackedLinear) and linear.precision != precision:
        raise ValueError(f"the weights are packed in {linear.precision} already: load the model again for {precision}")
    if not isinstance(linear, PackedLinear):
        setattr(module, name, linear := PackedLinear(linear, precision))
    return linear


def _stored(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """A layer's weight, and of bitsandbytes' int8 a scale for each row."""
    weight: Any = linear.weight
    if weight.dtype != torch.int8:
        return weight.detach(), None
    state: Any = linear.state
    largest = weight.SCB if state.SCB is None else state.SCB  # moved there when the layer first ran
    return weight.detach(), largest.float() / 127
