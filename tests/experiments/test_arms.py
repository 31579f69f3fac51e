import pytest

from lipadvisor.experiments.arms import ARMS, Arm
from lipadvisor.policies import Policy, named_policy

arms = pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)
kinds = pytest.mark.parametrize("kind", ["adamw", "sgd"])


@arms
@kinds
def test_every_corner_of_the_space_is_a_policy(arm: Arm, kind: str) -> None:
    space = arm.space(kind)
    for corner in ("low", "high", "default"):
        policy: Policy[object] = arm.policy({item.name: getattr(item, corner) for item in space})
        assert policy.name == named_policy(arm.policy_name).name


@kinds
def test_the_untuned_arm_is_the_default_policy_and_the_tuned_one_starts_from_it(kind: str) -> None:
    assert ARMS["lipschitz"].space(kind) == ()
    assert ARMS["lipschitz"].policy({}) == named_policy("lipschitz")
    start = {item.name: item.default for item in ARMS["lipschitz_tuned"].space(kind)}
    assert ARMS["lipschitz_tuned"].policy(start) == named_policy("lipschitz")


@kinds
def test_the_baselines_search_the_same_ranges(kind: str) -> None:
    assert len({arm.space(kind) for arm in ARMS.values() if arm.baseline}) == 1
