"""The transduction tasks beside answers in plain Python, and models that know them."""

import torch
import torch.nn.functional as F
from torch import nn

from zorn.tasks import AddTask, CopyTask, RepeatCopyTask, ReverseTask, SortTask

TASKS = {
    CopyTask: lambda source: source,
    ReverseTask: lambda source: source[::-1],
    SortTask: lambda source: "".join(sorted(source)),
    RepeatCopyTask: lambda source: source[1:] * int(source[0]),
    AddTask: lambda source: str(sum(map(int, source.split("+")))),
}
"""The answer to a source, by task; written from the definition of the task alone."""

SIZE_OF = {
    CopyTask: len,
    ReverseTask: len,
    SortTask: len,
    RepeatCopyTask: lambda source: len(source) - 1,
    AddTask: lambda source: source.index("+"),
}
"""The length L of a source."""


def make(kind, **changes):
    return kind(**({"batch": 8, "minimum_length": 2, "maximum_length": 5, "seed": 7} | changes))


class Transducer(nn.Module):
    """A recurrent model that predicts the symbol `predict(text so far)` at every step.

    Its state is the text of each row.
    """

    def __init__(self, task, predict, confidence=lambda text: 50.0):
        super().__init__()
        self.task, self.predict, self.confidence = task, predict, confidence

    def initial_state(self, rows):
        return [""] * rows

    def forward(self, inputs, state):
        logits = torch.zeros(*inputs.shape, self.task.vocabulary)
        state = list(state)
        for row, tokens in enumerate(inputs):
            for time, symbol in enumerate(self.task.decode(tokens)):
                state[row] += symbol
                predicted = self.task.encode(self.predict(state[row]))[0]
                one_hot = F.one_hot(predicted, self.task.vocabulary)
                logits[row, time] = self.confidence(state[row]) * one_hot
        return logits, state


def right_answer(kind, ahead=0):
    """Predicts the sequence of a source; `ahead` tokens too far ahead (or behind, below 0)."""

    def predict(text):
        source, separator, _ = text.partition("|")
        if not separator:
            return "_"
        return (f"{source}|{TASKS[kind](source)}." + "_" * len(text))[len(text) + ahead]

    return predict


def written(task, batch):
    """(source, answer with its end) of each row, and checks all that a batch must be besides."""
    result = []
    for inputs, targets in zip(*batch, strict=True):
        text = task.decode(inputs)
        source, separator, rest = text.rstrip("_").partition("|")
        counted = targets != -100
        answer = task.decode(targets[counted])
        assert separator == "|"
        assert rest + "." == answer  # what is read after the separator is what was to be predicted before
        places = list(range(len(source), len(source) + len(answer)))  # from the separator on
        assert counted.nonzero()[:, 0].tolist() == places
        result.append((source, answer))
    return result
