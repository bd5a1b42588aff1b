"""The known faults of public code for zero-order training, and for each the test that would catch it here.

Most were measured in the code of the paper (Chaubard and Kochenderfer, 2025), others in libraries near it.
A fault that is found later gets a line here and a test beside the others.
"""

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
NOISE, LOSS, PRACTICE = (f"faults/test_{name}_faults.py" for name in ("noise", "loss", "practice"))

FAULTS = {
    "ε read again at tell, when a schedule has moved": [
        (NOISE, "test_epsilon_is_that_of_the_question_when_a_schedule_has_moved"),
        ("estimators/test_ask_tell.py", "test_settings_changed_between_ask_and_tell_change_nothing"),
    ],
    "one seed for every tensor, or every chunk of one": [
        (NOISE, "test_every_tensor_and_chunk_has_noise_of_its_own"),
    ],
    "frozen parameters and buffers perturbed": [
        (NOISE, "test_frozen_parameters_and_buffers_are_never_perturbed"),
        (NOISE, "test_of_a_frozen_model_only_what_is_thawed_moves_the_output"),
    ],
    "noise drawn three times a member": [(NOISE, "test_noise_is_drawn_at_most_twice_a_member")],
    "weights that drift as perturbations are added and taken away": [
        (NOISE, "test_a_hundred_perturbations_leave_the_weights_bit_identical"),
    ],
    "members evaluated at weights that still hold another's perturbation": [
        (NOISE, "test_members_never_see_weights_of_another_member"),
    ],
    "parameters perturbed that nothing reads": [
        (NOISE, "test_every_parameter_that_is_perturbed_changes_the_loss"),
    ],
    "memory slots that start equal and stay so; a dead parameter in the memory's norm": [
        ("models/test_dnc.py", "test_slots_of_a_simple_memory_come_apart"),
        ("models/test_dnc_members.py", "test_the_perturbation_of_each_parameter_alone_changes_the_output"),
    ],
    "loss misaligned by one token": [(LOSS, "test_the_loss_is_not_off_by_one_token")],
    "accuracy off by one token": [(LOSS, "test_the_accuracy_is_not_off_by_one_token")],
    "an average of averages over rows of unequal length": [
        (LOSS, "test_a_loss_is_a_mean_over_tokens_where_rows_differ_in_length"),
    ],
    "a BPTT loss that is indexed token by token": [
        (LOSS, "test_the_backward_graph_of_bptt_does_not_grow_with_the_batch"),
    ],
    "a curvature that is computed and never applied": [(LOSS, "test_the_curvature_of_spsa_is_applied")],
    "selection on the test set": [
        (PRACTICE, "test_training_never_evaluates_the_test_split"),
        (PRACTICE, "test_no_benchmark_or_example_names_the_test_split"),
    ],
    "bfloat16 by default": [(PRACTICE, "test_a_model_is_float32_unless_it_is_told_otherwise")],
    "lr = ε as a law": [
        (PRACTICE, "test_epsilon_follows_the_learning_rate_in_the_paper_presets_alone"),
    ],
    "a script with a syntax error": [
        (PRACTICE, "test_every_file_compiles"),
        (PRACTICE, "test_every_script_shows_its_help"),
        (PRACTICE, "test_every_command_shows_its_help"),
    ],
    "steps alone reported, seconds of unlike machines": [
        (PRACTICE, "test_a_comparison_tells_steps_passes_and_seconds"),
    ],
    "a baseline of plain SGD": [
        (PRACTICE, "test_the_baselines_are_tuned_adamw_and_sgd_with_momentum_and_clipping"),
    ],
}


@functools.cache
def named_tests(file: str) -> dict[str, str]:
    """The tests of a file and their docstrings."""
    tree = ast.parse((TESTS / file).read_text())
    found = {
        node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.FunctionDef)
    }
    return {name: text for name, text in found.items() if name.startswith("test_")}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_known_fault_has_its_test(fault):
    assert FAULTS[fault]
    for file, name in FAULTS[fault]:
        assert name in named_tests(file), f"{file} has no {name}"


def test_every_test_of_a_fault_is_listed_and_says_the_fault():
    listed = {test for tests in FAULTS.values() for test in tests}
    for file in (NOISE, LOSS, PRACTICE):
        for name, text in named_tests(file).items():
            assert (file, name) in listed
            assert len(text.split()) >= 5, f"{name} does not say the fault"
