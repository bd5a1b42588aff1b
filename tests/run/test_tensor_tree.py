"""Splitting a nested state into JSON and tensors, and joining it again."""

import json
import math

import pytest
import torch

from zorn.errors import CheckpointError
from zorn.run.tensor_tree import independent_copy, join_tree, split_tree, stored_tensors


def test_any_nesting_survives_a_trip_through_json():
    tree = {
        0: {"step": torch.tensor(3.0), "history": [torch.arange(4), (1, 2.5, None, True, "text")]},
        "groups": [{"betas": (0.9, 0.999), "lr": 0.1 + 0.2, "params": [0, 1], "empty": {}, "none": []}],
        "infinite": -math.inf,
    }
    plain, tensors = split_tree(tree)
    assert sorted(tensors) == ["state.0.history.0", "state.0.step"]
    joined = join_tree(json.loads(json.dumps(plain)), tensors)
    assert torch.equal(joined[0].pop("step"), tree[0].pop("step"))
    assert torch.equal(joined[0]["history"].pop(0), tree[0]["history"].pop(0))
    assert joined == tree
    assert type(joined["groups"][0]["betas"]) is tuple


def test_what_would_need_pickle_is_refused_with_its_place():
    with pytest.raises(CheckpointError, match=r"optimizer\.state\.0\.hook is a function"):
        split_tree({"state": {0: {"hook": len.__class__ and (lambda: None)}}}, "optimizer")
    with pytest.raises(CheckpointError, match="state is a dict"):
        split_tree({(1, 2): 3})


def test_a_tensor_of_several_names_is_stored_once_and_views_of_its_memory_are_not_it():
    module = torch.nn.Module()
    module.a = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    module.b = module.a
    module.register_buffer("c", module.a.detach().t())
    module.register_buffer("d", module.a.detach())
    module.register_buffer("e", module.d)
    module.register_buffer("left_out", torch.ones(1), persistent=False)
    assert list(stored_tensors(module)) == ["a", "c", "d"]


def test_independent_copies_share_nothing_and_copy_no_more_than_needed():
    weight = torch.arange(6.0).view(2, 3)
    owned = independent_copy({"a": weight, "row": weight[0], "turned": weight.t(), "other": torch.ones(2)})
    pointers = [tensor.untyped_storage().data_ptr() for tensor in owned.values()]
    assert len(set(pointers)) == 4
    assert owned["a"].data_ptr() == weight.data_ptr()
    assert all(tensor.is_contiguous() for tensor in owned.values())
    assert torch.equal(owned["turned"], weight.t())
