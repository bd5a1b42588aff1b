"""Tasks: data, objectives and metrics.

`TextTask` and `CopyTask` give a batch for every step and evaluate a model, both deterministic from their
seed.
"""

from zorn.tasks.copy import CopyTask, copy_batch
from zorn.tasks.metrics import TokenMetrics, bits_per_byte
from zorn.tasks.objectives import IGNORE, TokenCrossEntropy, sequence_error, token_error_rate
from zorn.tasks.task import SPLITS, Evaluation, EvaluationData, Task
from zorn.tasks.text import PYTHON_DOCS, TextTask, read_source
from zorn.tasks.tokenizers import (
    AlphabetTokenizer,
    BpeTokenizer,
    ByteTokenizer,
    Tokenizer,
    tokenizer_from_json,
)
from zorn.tasks.yardsticks import bigram_bits_per_byte, unigram_bits_per_byte

__all__ = [
    "IGNORE",
    "PYTHON_DOCS",
    "SPLITS",
    "AlphabetTokenizer",
    "BpeTokenizer",
    "ByteTokenizer",
    "CopyTask",
    "Evaluation",
    "EvaluationData",
    "Task",
    "TextTask",
    "TokenCrossEntropy",
    "TokenMetrics",
    "Tokenizer",
    "bigram_bits_per_byte",
    "bits_per_byte",
    "copy_batch",
    "read_source",
    "sequence_error",
    "token_error_rate",
    "tokenizer_from_json",
    "unigram_bits_per_byte",
]
