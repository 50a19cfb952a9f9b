"""Gates: scores of the choices of a block, from its own input."""

from jaxtyping import Float
from torch import Tensor, nn

from stepwell.nets.decisions.estimators import Scores

#: Units between the mean over positions and the scores.
HIDDEN = 16
#: Bias of the scores "skip" and "run" at first: 87 % run (Veit and Belongie 2018).
OPEN = (0.1, 2.0)


class Gate(nn.Module):
    """Scores of the choices of a block, by the mean of its input over all positions (ConvNet-AIG).

    Two linear layers with BatchNorm between them. With two choices, "run" is the last one.

    Raises:
        ValueError: fewer than two choices.
    """

    def __init__(self, channels: int, choices: int = 2) -> None:
        super().__init__()
        if choices < 2:
            raise ValueError(f"a gate chooses between two paths or more, not {choices}")
        self.first = nn.Linear(channels, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.relu = nn.ReLU(inplace=True)
        self.scores = nn.Linear(HIDDEN, choices)
        nn.init.normal_(self.scores.weight, std=0.001)
        nn.init.zeros_(self.scores.bias)
        if choices == 2:
            self.scores.bias.data.copy_(self.scores.bias.new_tensor(OPEN))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Scores:
        """Maps to scores of the choices."""
        scores: Tensor = self.scores(self.relu(self.norm(self.first(x.mean((2, 3))))))
        return scores
