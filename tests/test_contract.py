import dataclasses
import json

import pytest

from imagewam.processing.camera_layout import CameraSpec
from imagewam.processing.contract import ActionSpec, ContractMismatchError, PolicyContract, StateSpec


def libero_contract(**changes):
    contract = PolicyContract(
        cameras=[CameraSpec("agentview", 224, 224, rotate_180=True), CameraSpec("wrist", 224, 224, rotate_180=True)],
        layout="horizontal",
        state=StateSpec([f"s{i}" for i in range(8)], rotation="axis_angle"),
        action=ActionSpec(
            [f"a{i}" for i in range(7)],
            units=["m"] * 3 + ["rad"] * 3 + ["1"],
            relative_to_state=[0, 1, 2, None, None, None, None],
            gripper="-1 opens, 1 closes",
        ),
        fps=20,
        horizon=16,
        dataset={"repo": "someone/libero", "revision": "abc"},
    )
    return dataclasses.replace(contract, **changes)


def test_survives_json():
    contract = libero_contract()
    again = PolicyContract.from_dict(json.loads(json.dumps(contract.to_dict())))
    assert again == contract and again.hash == contract.hash
    contract.check(again)


def test_lists_every_differing_field_with_both_sides():
    contract = libero_contract()
    flipped = dataclasses.replace(contract.cameras[0], rotate_180=False)
    action = dataclasses.replace(contract.action, gripper="0 closes, 1 opens", relative_to_state=None)
    other = libero_contract(cameras=[flipped, contract.cameras[1]], action=action, fps=10)
    with pytest.raises(ContractMismatchError, match="the policy and the simulator do not fit together") as error:
        contract.check(other, sides=("the policy", "the simulator"))
    lines = str(error.value).splitlines()
    assert "  cameras[0].rotate_180: True in the policy, False in the simulator" in lines
    assert "  action.gripper: '-1 opens, 1 closes' in the policy, '0 closes, 1 opens' in the simulator" in lines
    assert "  fps: 20.0 in the policy, 10.0 in the simulator" in lines
    assert "  action.relative_to_state[0]: 0 in the policy, 'absent' in the simulator" in lines
    assert not any("wrist" in line or "state.names" in line for line in lines)
    assert contract.hash != other.hash


def test_a_missing_camera_is_a_difference():
    contract = libero_contract()
    differences = contract.differences(libero_contract(cameras=contract.cameras[:1]))
    assert differences["cameras[1].name"] == ("wrist", "absent")


def test_ignored_fields_take_all_below_them():
    other = libero_contract(dataset={"repo": "someone/else", "revision": None}, statistics_hash="1" * 64)
    assert libero_contract().differences(other, ignore=("dataset", "statistics_hash")) == {}
    assert set(libero_contract().differences(other)) == {"dataset.repo", "dataset.revision", "statistics_hash"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StateSpec(()), "state needs one name per dimension"),
        (lambda: ActionSpec("abc"), "action needs one name per dimension"),
        (lambda: StateSpec(("x", "x")), "all different"),
        (lambda: StateSpec(("x",), normalization="zscore"), "unknown normalisation 'zscore' of the state"),
        (lambda: ActionSpec(("x", "y"), units=("m",)), "units must have one entry per action dimension"),
        (lambda: libero_contract(action=ActionSpec(("x",), relative_to_state=(8,))), "state dimension 8, of 8"),
        (lambda: libero_contract(fps=0), "fps and horizon must be positive"),
        (lambda: libero_contract(layout="single"), "takes one camera"),
        (lambda: libero_contract(dataset={"repo": "/home/me/data", "revision": None}), "got the local path"),
        (lambda: libero_contract(dataset={"repo": "a/b"}), "'repo': ..., 'revision': ..."),
        (lambda: PolicyContract.from_dict({"layout": "single"}), r"CameraSpec|StateSpec: missing fields \['names'\]"),
    ],
)
def test_impossible_contracts_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_unknown_fields_are_refused():
    data = libero_contract().to_dict()
    data["cameras"][0]["flip"] = True
    with pytest.raises(ValueError, match=r"CameraSpec: missing fields \[\], unknown fields \['flip'\]"):
        PolicyContract.from_dict(data)
