"""A stage of the cascaded ConvLSTM (after Yakkundi & Subha, ICOEI 2020; sizes ours): frames in the order of time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvLstmStage(nn.Module):
    """(batch · stack, channels, height, width) → the same shape, = input + network(input).

    Two layers of ConvLSTM over the `stack` consecutive frames of each series: a frame depends on itself and on those
    before it. Any size. The last layer starts at zero, so that an untrained stage returns its input. A cascade of them
    is `generator.cascades`, with data consistency after each.
    """

    multiple = 1  # of which height and width are made

    def __init__(self, width: int, channels: int = 1, stack: int = 1) -> None:
        super().__init__()
        self.stack = stack
        self.layers = nn.Sequential(ConvLstm(channels, width), ConvLstm(width, width))
        self.last = nn.Conv2d(width, channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(torch.as_tensor(self.last.bias))

    def forward(self, image: Tensor, *_measurement: Tensor | None) -> Tensor:
        hidden = self.layers(image.unflatten(0, (-1, self.stack)))
        return image + self.last(hidden.flatten(0, 1))


class ConvLstm(nn.Module):
    """Frames (batch, stack, channels, height, width) → states (batch, stack, width, height, width).

    No peepholes; the state before the first frame is zero, and the forget gate starts open. Source: Shi et al.,
    Convolutional LSTM network (2015), eq. (3).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        # gates in the order input, forget, output, candidate
        self.from_input = nn.Conv2d(channels, 4 * width, kernel_size=3, padding=1)
        self.from_state = nn.Conv2d(width, 4 * width, kernel_size=3, padding=1, bias=False)
        bias = torch.zeros(4, width)
        bias[1] = 1
        self.from_input.bias = nn.Parameter(bias.flatten())

    def forward(self, frames: Tensor) -> Tensor:
        inputs = self.from_input(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        memory: Tensor | None = None
        states: list[Tensor] = []
        for gates in inputs.unbind(dim=1):
            gates = gates + self.from_state(states[-1]) if states else gates
            put, keep, show, candidate = gates.chunk(4, dim=1)
            new = torch.sigmoid(put) * torch.tanh(candidate)
            memory = new if memory is None else torch.sigmoid(keep) * memory + new
            states.append(torch.sigmoid(show) * torch.tanh(memory))
        return torch.stack(states, dim=1)
