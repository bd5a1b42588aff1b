"""Models as others write them, each with a trait that hides rows or weights from layers, and what they
need."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

VOCABULARY, UNITS = 11, 6


class Tied(nn.Module):
    """A weight that its module reads, and `F.linear` too."""

    def __init__(self, padding=None):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, UNITS, padding_idx=padding)

    def forward(self, tokens):
        return F.linear(self.embedding(tokens).tanh(), self.embedding.weight)


class TimeFirst(nn.Module):
    """Time in front inside, as long as a pass has rows, which a layer cannot tell apart."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mid = nn.Embedding(VOCABULARY, UNITS), nn.Linear(UNITS, UNITS)
        self.head = nn.Linear(UNITS, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.mid(self.embedding(tokens).transpose(0, 1)).tanh().transpose(0, 1))


class Latents(nn.Module):
    """Attention to slots that all rows share."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, UNITS)
        self.slots = nn.Parameter(torch.randn(4, UNITS))
        self.keys, self.head = nn.Linear(UNITS, UNITS), nn.Linear(UNITS, VOCABULARY)

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(x + (x @ self.keys(self.slots).T).softmax(-1) @ self.slots)


class ListOfWeights(nn.Module):
    """Weights in a list, a vector, a matrix from the left, addmm, einsum and a filter, no module in
    between."""

    def __init__(self):
        super().__init__()
        shapes = [(VOCABULARY, UNITS), (UNITS, UNITS), (UNITS, UNITS), (UNITS, UNITS), (UNITS, 1, 3)]
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape) / 2) for shape in shapes])
        self.gain = nn.Parameter(torch.ones(UNITS))

    def forward(self, tokens):
        table, right, left, third, filters = self.weights
        x = table[tokens] @ right * self.gain
        x = torch.einsum("rtu,vu->rtv", x.tanh(), third)
        x = torch.stack([left @ row for row in x.flatten(0, 1)]).view(x.shape)
        x = torch.addmm(self.gain, x.flatten(0, 1), right).view(x.shape)
        x = F.conv1d(F.pad(x.mT, (2, 0)), filters, groups=UNITS).mT
        return x @ table.T


class Transformer(nn.Module):
    """torch's own encoder, whose attention reads packed projections."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(UNITS, 2, 8, batch_first=True)
        self.embedding, self.body = nn.Embedding(VOCABULARY, UNITS), nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(UNITS, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.body(self.embedding(tokens)))


class Normed(nn.Module):
    """A weight that is made from two parameters."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, UNITS)
        self.head = weight_norm(nn.Linear(UNITS, VOCABULARY))

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


class Double(torch.autograd.Function):
    """An operation that vmap cannot run: it has no `setup_context`."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, *gradients):
        return 2 * gradients[0]


class OwnFunction(Tied):
    """A custom function of autograd."""

    def forward(self, tokens):
        return Double.apply(super().forward(tokens))


class Branches(Tied):
    """Control flow that depends on the data."""

    def forward(self, tokens):
        logits = super().forward(tokens)
        return logits if logits.sum() > 0 else logits * 2


class Keeps(Tied):
    """A tensor of a forward that stays on the module."""

    def forward(self, tokens):
        self.last = super().forward(tokens)
        return self.last


class Recurrent(nn.Module):
    """One of torch's recurrent layers or cells, as configured."""

    def __init__(self, kind, packed=False, **options):
        super().__init__()
        self.embedding, self.body = nn.Embedding(VOCABULARY, UNITS), kind(UNITS, 8, **options)
        self.packed, self.batch_first = packed, bool(options.get("batch_first"))
        size = options.get("proj_size") or 8
        self.head = nn.Linear(size * (1 + bool(options.get("bidirectional"))), VOCABULARY)

    def forward(self, tokens):
        x = self.embedding(tokens)
        if isinstance(self.body, nn.RNNCellBase):
            state, outputs = None, []
            for x_t in x.unbind(1):
                state = self.body(x_t, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            return self.head(torch.stack(outputs, 1))
        x = x if self.batch_first else x.transpose(0, 1)
        if self.packed:
            lengths = 1 + tokens.sum(1) % tokens.shape[1]
            x = pack_padded_sequence(x, lengths, batch_first=self.batch_first, enforce_sorted=False)
        y, final = self.body(x)
        if self.packed:
            y, _ = pad_packed_sequence(y, batch_first=self.batch_first, total_length=tokens.shape[1])
        last = final[0] if isinstance(final, tuple) else final
        return self.head(y if self.batch_first else y.transpose(0, 1)) + last.sum((0, 2))[:, None, None]
