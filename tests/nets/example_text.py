"""A small encoder of texts, whose steps take a mask and give their attention where asked to."""

import torch
from torch import nn

WIDTH, CLASSES, WORDS = 6, 5, 11


class Layer(nn.Module):
    """One head of attention under a mask, and a norm; gives its attention where it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x, mask=None, extras=()):
        scores = self.query(x) @ self.key(x).mT
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -1e9)
        attention = scores.softmax(-1)
        y = self.norm(x + attention @ self.value(x))
        further = {"attention": attention, "hidden": y}
        return (y, {n: further[n] for n in extras if n in further}) if extras else y


class Encoder(nn.Module):
    """Token ids to logits; `tied`: the classifier's weights are those of the embedding."""

    def __init__(self, layers=4, tied=False) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.fc = nn.Linear(WIDTH, WORDS if tied else CLASSES, bias=not tied)
        if tied:
            self.fc.weight = self.embed.weight

    def forward(self, x, mask=None):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.fc(x[:, 0])


TEXT = torch.randint(WORDS, (3, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(7)[None] < torch.tensor([7, 4, 2])[:, None]
