import numpy as np

from imagewam.training.baselines import absolute_chunk_error, matching_state_index, mean_action, repeat_state


def test_baselines_give_one_action_per_state():
    states = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=np.float32)
    np.testing.assert_array_equal(mean_action([0.5, -0.5])(states), [[0.5, -0.5], [0.5, -0.5]])
    np.testing.assert_array_equal(repeat_state([2, 0])(states), [[3.0, 1.0], [6.0, 4.0]])


def test_state_dimensions_are_matched_by_name():
    assert matching_state_index(["elbow", "wrist", "gripper"], ["gripper", "elbow"]) == [2, 0]
    assert matching_state_index(["elbow", "wrist"], ["elbow", "gripper"]) is None


def test_padded_steps_do_not_count():
    actions = np.zeros((1, 3, 2))
    predicted = np.array([[[1.0, -2.0], [3.0, 4.0], [100.0, 100.0]]])
    is_pad = np.array([[False, False, True]])
    np.testing.assert_array_equal(absolute_chunk_error(predicted, actions, is_pad), [[4.0, 6.0]])


def test_one_action_is_held_over_the_chunk():
    actions = np.arange(3.0).reshape(1, 3, 1)
    held = np.array([[[1.0]]])
    np.testing.assert_array_equal(absolute_chunk_error(held, actions, np.zeros((1, 3), bool)), [[2.0]])
