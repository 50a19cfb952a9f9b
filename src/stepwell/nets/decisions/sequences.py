"""A recurrent layer that skips tokens, after Skip RNN (Campos et al. 2018).

    u_t = [p_t ≥ 0.5]                                   does token t update the state?
    s_t = u_t · S(s_{t-1}, x_t) + (1 - u_t) · s_{t-1}   S: a GRU or LSTM cell
    d_t = u_t · sigmoid(W_p S(s_{t-1}, x_t) + b_p) + (1 - u_t) · d_{t-1}
    p_{t+1} = u_t · d_t + (1 - u_t) · (p_t + min(d_t, 1 - p_t))

p_1 = 1: the first token always updates. d_t only changes with an update, so that each update determines
how many tokens are skipped after it. The paper writes d_t as sigmoid(W_p s_t + b_p): the same value,
with another gradient through u_t.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from stepwell.nets.decisions.estimators import Draw

#: Vectors of the tokens of a text, and True for real tokens; padding is at the end.
Vectors = Float[Tensor, "batch tokens inputs"]
Mask = Bool[Tensor, "batch tokens"]
#: The state of the cell: of an LSTM, h and c side by side.
State = Float[Tensor, "batch states"]
Hidden = Float[Tensor, "batch width"]
#: By the name of a cell: its class, and the number of its states.
CELLS: Mapping[str, tuple[type[nn.GRUCell | nn.LSTMCell], int]] = MappingProxyType({
    "gru": (nn.GRUCell, 1), "lstm": (nn.LSTMCell, 2)
})  # fmt: skip
#: A token updates the state from this probability on.
HALF = 0.5


class SkipCell(nn.Module):
    """Reads a text token by token and skips what its state does not need; gives the last state h.

    In training, and in eval with a `draw`, every token is computed, and skipped ones do not count. In
    eval without one, only the updates are computed, of the texts that are not at their end yet.

    Args:
        kind: a key of `CELLS`.
        inputs: numbers of a token's vector.
        width: numbers of a state.
    """

    def __init__(self, kind: str, inputs: int, width: int) -> None:
        super().__init__()
        make, states = CELLS[kind]
        self.kind, self.width = kind, width
        self.cell = make(inputs, width)
        self.start = nn.Parameter(torch.zeros(states * width))
        self.gate = nn.Linear(width, 1)
        nn.init.ones_(self.gate.bias)

    def update(self, x: Float[Tensor, "batch inputs"], state: State) -> tuple[State, Tensor]:
        """The state after a token, and d (batch,), the increment of the update probability."""
        if isinstance(self.cell, nn.LSTMCell):
            h, c = state.chunk(2, 1)
            parts = self.cell(x, (h.contiguous(), c.contiguous()))
            state, seen = torch.cat(parts, 1), parts[1]
        else:
            state = seen = self.cell(x, state)
        return state, self.gate(seen).squeeze(1).sigmoid()

    def forward(
        self, tokens: tuple[Mask, Vectors], extras: Collection[str] = (), draw: Draw | None = None,
        keep: Tensor | None = None,
    ) -> Hidden | tuple[Hidden, Mapping[str, Tensor]]:  # fmt: skip
        """The last state h of each text; with `extras`, what the gate decided, by name.

        "read" is 1 for each token that updated the state (batch, tokens); "used" and "length" are the
        numbers of these and of all tokens (batch,).

        Args:
            draw: compute every token; "always": every token updates the state.
            keep: the tokens that update it (batch, tokens), in place of the gate, which then gets no
                gradient; for controls.
        """
        mask, vectors = tokens
        if torch.compiler.is_exporting():
            return self._looped(mask, vectors)[:, : self.width]
        if self.training or draw is not None or keep is not None:
            every = draw is not None and draw.estimator == "always"
            updating = torch.ones_like(mask) if every else keep
            state, read = self._masked(mask, vectors, updating)
        elif vectors.is_meta or torch.compiler.is_compiling():
            state, read = self._masked(mask, vectors, None)
        else:
            state, read = self._compacted(mask, vectors)
        hidden = state[:, : self.width]
        if not extras:
            return hidden
        return hidden, {"read": read, "used": read.sum(1), "length": mask.sum(1).to(read)}

    def _masked(
        self, mask: Mask, vectors: Vectors, keep: Mask | None
    ) -> tuple[State, Float[Tensor, "batch tokens"]]:
        """The last state, and 1 for each token that updated it, which has the gate's gradient."""
        state = self.start.expand(len(mask), -1)
        share = step = state.new_ones(len(mask))  # p and d
        read, since = [], torch.ones_like(share, dtype=torch.float32)
        for t in range(mask.shape[1]):
            real = mask[:, t].to(share)
            due = is_due(since, step).to(share) if keep is None else keep[:, t].to(share)
            if keep is None:  # straight-through, du/dp = 1; in this order, u is 0 or 1 to the bit
                due = due + (share - share.detach())
            u = due * real
            new, after = self.update(vectors[:, t], state)
            new, after = new.to(state), after.to(share)  # cells give half precision under autocast
            state = torch.lerp(state, new, u[:, None])
            step = torch.lerp(step, after, u) if t else after
            share = u * step + (1 - u) * (share + torch.minimum(step, 1 - share))
            since = since * (1 - u.detach()) + 1
            read.append(u)
        return state, torch.stack(read, 1)

    def _compacted(self, mask: Mask, vectors: Vectors) -> tuple[State, Float[Tensor, "batch tokens"]]:
        """Compute only the updates, without gradients.

        Texts leave the batch when their next update lies behind their end.
        """
        lengths = mask.sum(1)
        rows = lengths.nonzero().flatten()
        state = self.start.expand(len(rows), -1)
        last = self.start.repeat(len(mask), 1)
        read = torch.zeros_like(mask, dtype=vectors.dtype)
        at = torch.zeros_like(rows)
        while len(rows):
            state, step = self.update(vectors[rows, at], state)
            read[rows, at] = 1
            at = at + tokens_to_next(step.float(), mask.shape[1])
            ended = at >= lengths[rows]
            if bool(ended.any()):
                last[rows[ended]] = state[ended].to(last)
                rows, at, state = rows[~ended], at[~ended], state[~ended]
        return last, read

    def _looped(self, mask: Mask, vectors: Vectors) -> State:
        """The last state as a graph: a loop that ends with the text that takes most updates."""
        lengths, most = mask.sum(1), mask.shape[1]

        def goes_on(at: Tensor, state: Tensor) -> Tensor:
            return (at < lengths).sum() > 0  # `any` of no text is true in ONNX

        def advance(at: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            place = at.clamp(max=most - 1)[:, None, None].expand(-1, 1, vectors.shape[2])
            new, step = self.update(vectors.gather(1, place).squeeze(1), state)
            goes = at < lengths
            after = at + tokens_to_next(step.float(), most) * goes
            return after, torch.where(goes[:, None], new, state)

        # `len(mask)` would make the batch size part of the graph
        begin = torch.zeros_like(lengths), self.start.expand(mask.shape[0], -1) + 0.0
        _, state = while_loop(goes_on, advance, begin)
        last: Tensor = state
        return last


def is_due(since: Float[Tensor, " batch"], step: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """True where p is 0.5 or more, `since` tokens behind an update: p is then min(1, since · d)."""
    return since * step >= HALF


def tokens_to_next(step: Float[Tensor, " batch"], most: int) -> Int[Tensor, " batch"]:
    """The smallest n with n · d ≥ 0.5: tokens from each update to the next; above `most` if none is.

    It decides as `is_due` does, to the bit, whatever the division rounds to.
    """
    count = (HALF / step).ceil().clamp(1, most + 1)
    count = torch.where((count > 1) & is_due(count - 1, step), count - 1, count)
    return torch.where(is_due(count, step), count, count + 1).long()


def skip_cell(module: nn.Module) -> SkipCell:
    """The layer of a network that skips tokens; ValueError if it has none."""
    for inner in module.modules():
        if isinstance(inner, SkipCell):
            return inner
    raise ValueError('this network skips no tokens: build("skip-gru/128", ...)')


def evenly(mask: Mask, rate: float, draw: torch.Generator | None = None) -> Mask:
    """Keep at least this share of each text, evenly spaced, always its first token."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=torch.float64)
    counts = torch.ceil(places * rate - 1e-9)
    chosen = counts.diff(prepend=counts.new_zeros(1)) > 0
    return mask & chosen


def at_random(mask: Mask, rate: float, draw: torch.Generator | None = None) -> Mask:
    """Keep each token with probability `rate`, always the first."""
    chosen = torch.rand(mask.shape, generator=draw).to(mask.device) < rate
    chosen[:, :1] = True
    return mask & chosen
