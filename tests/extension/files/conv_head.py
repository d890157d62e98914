"""A box head of one convolution and one hidden layer, instead of the paper's two hidden layers."""

from torch import nn

from fpn import HeadInput


class ConvHead(nn.Module):
    def __init__(self, input: HeadInput, width: int = 16):
        super().__init__()
        self.conv = nn.Conv2d(input.channels, width, 3, padding=1)
        self.hidden = nn.Linear(width * input.resolution**2, width)
        self.scores = nn.Linear(width, input.classes + 1)
        self.deltas = nn.Linear(width, 4 * input.boxes)

    def forward(self, x):
        x = self.hidden(self.conv(x).relu().flatten(1)).relu()
        return self.scores(x), self.deltas(x).unflatten(1, (-1, 4))
