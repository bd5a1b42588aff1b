"""Tasks: data, objectives and metrics.

A task gives a batch for every step and evaluates a model, both deterministic from its seed. `TextTask` is
next-token prediction of a text; the transduction tasks (copy, reverse, sort, repeat-copy, add) read a source
and write its answer. An objective says what training minimises: `TokenCrossEntropy`, or any function of a row
through `RowScore`.
"""

from zorn.registry import Registry
from zorn.tasks.add import AddTask
from zorn.tasks.letters import CopyTask, RepeatCopyTask, ReverseTask, SortTask
from zorn.tasks.metrics import TokenMetrics, bits_per_byte
from zorn.tasks.objective_names import OBJECTIVES, has_derivative, objective_of
from zorn.tasks.objectives import IGNORE, TokenCrossEntropy, sequence_error, token_error_rate
from zorn.tasks.row_score import RowScore, edit_distance, exact_match, greedy_tokens
from zorn.tasks.task import SPLITS, Evaluation, EvaluationData, Task
from zorn.tasks.text import PYTHON_DOCS, TextTask, read_source
from zorn.tasks.tokenizers import (
    AlphabetTokenizer,
    BpeTokenizer,
    ByteTokenizer,
    Tokenizer,
    tokenizer_from_json,
)
from zorn.tasks.transduction import (
    EVALUATION_ROWS,
    TRANSDUCTION_SPLITS,
    Strings,
    TransductionTask,
    transduction_batch,
)
from zorn.tasks.yardsticks import bigram_bits_per_byte, unigram_bits_per_byte

TASKS: Registry[type[Task]] = Registry(
    "task",
    {
        "text": TextTask,
        "copy": CopyTask,
        "reverse": ReverseTask,
        "sort": SortTask,
        "repeat-copy": RepeatCopyTask,
        "add": AddTask,
    },
    base=Task,
)
"""The tasks by the names that settings use."""

__all__ = [
    "EVALUATION_ROWS",
    "IGNORE",
    "OBJECTIVES",
    "PYTHON_DOCS",
    "SPLITS",
    "TASKS",
    "TRANSDUCTION_SPLITS",
    "AddTask",
    "AlphabetTokenizer",
    "BpeTokenizer",
    "ByteTokenizer",
    "CopyTask",
    "Evaluation",
    "EvaluationData",
    "RepeatCopyTask",
    "ReverseTask",
    "RowScore",
    "SortTask",
    "Strings",
    "Task",
    "TextTask",
    "TokenCrossEntropy",
    "TokenMetrics",
    "Tokenizer",
    "TransductionTask",
    "bigram_bits_per_byte",
    "bits_per_byte",
    "edit_distance",
    "exact_match",
    "greedy_tokens",
    "has_derivative",
    "objective_of",
    "read_source",
    "sequence_error",
    "token_error_rate",
    "tokenizer_from_json",
    "transduction_batch",
    "unigram_bits_per_byte",
]
