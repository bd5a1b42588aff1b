"""Nested Python data with tensors in it, split into plain JSON and a flat dictionary of tensors, and joined.

This is how the state of any `torch.optim` optimizer is saved without pickle: the tensors go into a
safetensors file, the rest (step counters, hyperparameters, parameter indices) into the manifest.
"""

from typing import Any

from torch import Tensor, nn

from zorn.errors import CheckpointError


def split_tree(tree: Any, name: str = "state") -> tuple[Any, dict[str, Tensor]]:
    """Split a tree into JSON-ready data and its tensors, named by their place in the tree.

    Handles dictionaries with string or integer keys, lists, tuples, tensors, numbers, strings, booleans and
    None; anything else raises CheckpointError with its place.

    >>> import torch
    >>> plain, tensors = split_tree({0: {"step": torch.tensor(3.0), "betas": (0.9, 0.99)}})
    >>> sorted(tensors)
    ['state.0.step']
    >>> join_tree(plain, tensors)
    {0: {'step': tensor(3.), 'betas': (0.9, 0.99)}}
    """
    tensors: dict[str, Tensor] = {}

    def split(node: Any, place: str) -> Any:
        if isinstance(node, Tensor):
            tensors[place] = node
            return {"tensor": place}
        if node is None or type(node) in (bool, int, float, str):
            return {"value": node}
        if type(node) in (list, tuple):
            items = [split(item, f"{place}.{index}") for index, item in enumerate(node)]
            return {type(node).__name__: items}
        if isinstance(node, dict) and all(type(key) in (int, str) for key in node):
            return {"dict": [[key, split(value, f"{place}.{key}")] for key, value in node.items()]}
        raise CheckpointError(
            f"{place} is a {type(node).__name__}, which cannot be saved without pickle: "
            "keep tensors, numbers, text, lists, tuples and dictionaries in the optimizer's state"
        )

    return split(tree, name), tensors


def join_tree(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree that `split_tree` took apart; the inverse of it."""
    ((kind, node),) = plain.items()
    match kind:
        case "tensor":
            return tensors[node]
        case "list":
            return [join_tree(item, tensors) for item in node]
        case "tuple":
            return tuple(join_tree(item, tensors) for item in node)
        case "dict":
            return {key: join_tree(value, tensors) for key, value in node}
        case _:
            return node


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state by name, those that several names share (tied weights) under the first.

    >>> module = nn.ModuleDict({"embedding": nn.Linear(3, 2), "head": nn.Linear(3, 2)})
    >>> module.head.weight = module.embedding.weight
    >>> list(stored_tensors(module))
    ['embedding.weight', 'embedding.bias', 'head.bias']
    """
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def independent_copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, each with memory of its own, as safetensors wants them.

    A tensor that already is all that stays uncopied.
    """
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().to("cpu").contiguous()
        storage = here.untyped_storage()
        whole = storage.nbytes() == here.numel() * here.element_size() and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        owned[name] = here if whole else here.clone()
    return owned
