import json

import pytest
from pydantic import ValidationError

from rasp.campaign.spec import CampaignSpec
from rasp.errors import ConfigError

VALID = {
    "network_digest": "n",
    "model": "lenet5",
    "data": "digits",
    "images": 100,
    "format": "int8",
    "accelerator": "nv_small",
    "accelerator_digest": "a",
    "fault_models": {"WEIGHT": 1.0, "RD_BFLIP": 2.0},
    "trials": 1000,
}


def test_text_and_back_is_the_same_spec():
    spec = CampaignSpec(**VALID, layers=("conv1", "fc"), seed=2**64 - 1)
    assert CampaignSpec.from_json(spec.to_json()) == spec


def test_the_digest_does_not_depend_on_the_order_models_are_given_in():
    other = {**VALID, "fault_models": {"RD_BFLIP": 2.0, "WEIGHT": 1.0}}
    assert CampaignSpec(**VALID).digest() == CampaignSpec(**other).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"network_digest": "other"},
        {"images": 99},
        {"format": "fp32"},
        {"accelerator_digest": "b"},
        {"fault_models": {"WEIGHT": 1.0}},
        {"layer_weights": "macs"},
        {"layers": ("conv1",)},
        {"trials": 1001},
        {"seed": 1},
    ],
)
def test_whatever_changes_a_row_changes_the_digest(change):
    one, other = CampaignSpec(**VALID), CampaignSpec(**{**VALID, **change})
    assert one.digest() != other.digest()
    assert one.differences(other) == tuple(change)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trials", 0),
        ("images", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("confidence", 1.0),
        ("format", "int9"),
        ("layer_weights", "luck"),
        ("split", "tset"),
        ("fault_models", {}),
        ("fault_models", {"WEIGHT": 0.0}),
        ("fault_models", {"WEIGHT": float("nan")}),
        ("layers", ()),
        ("model", ""),
        ("chunk", 4096),
        ("schema_version", 1),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_field(field, value):
    with pytest.raises(ConfigError) as caught:
        CampaignSpec(**{**VALID, field: value})
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", json.dumps({"trials": 3})])
def test_text_that_is_no_spec_is_refused(text):
    with pytest.raises(ConfigError, match="Campaign specification"):
        CampaignSpec.from_json(text)


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        CampaignSpec(**VALID).trials = 3


def of(**asked):
    return CampaignSpec(**{**VALID, **asked})


@pytest.mark.parametrize("sampling", ["uniform", "adaptive"])
@pytest.mark.parametrize("trials", [1, 4096, 4097, 8192, 10_000, 1_000_000])
def test_rounds_follow_each_other_and_double_up_to_the_largest(sampling, trials):
    rounds = of(sampling=sampling, margin=0.01, trials=trials).rounds()

    assert [trial for ends in rounds for trial in (ends.start, ends.stop)] == [
        0, *(end for ends in rounds[:-1] for end in (ends.stop, ends.stop)), trials,
    ]  # fmt: skip
    sizes = [len(span) for span in rounds]
    expected = [4096, 4096, 8192, 16384, 32768, 65536, *[131_072] * 10][: len(sizes)]
    assert sizes[:-1] == expected[:-1]
    assert 0 < sizes[-1] <= expected[-1]


def test_a_campaign_that_decides_nothing_has_one_round():
    assert of(trials=10**6).rounds() == (range(10**6),)


def test_the_first_rounds_of_adaptive_sampling_weigh_less():
    adaptive = of(sampling="adaptive", margin=0.01)

    assert [adaptive.emphasis(number) for number in range(4)] == [0.1, 0.5, 1.0, 1.0]
    assert [of(margin=0.01).emphasis(number) for number in range(4)] == [1.0] * 4


@pytest.mark.parametrize(
    ("trials", "weight"), [(0, 0), (100, 10), (4096, 409.6), (5096, 909.6), (9192, 3457.6)]
)
def test_the_first_trials_of_adaptive_sampling_are_expected_to_weigh_so_much(trials, weight):
    asked = of(sampling="adaptive", trials=10_000)
    assert asked.expected_weight(trials) == pytest.approx(weight)
    assert of(trials=10_000).expected_weight(trials) == trials


@pytest.mark.parametrize(
    "asked", [{"sampling": "neyman"}, {"margin": 0.0}, {"margin": 0.5}, {"outcome": "masked"}]
)
def test_what_a_campaign_cannot_stop_at_is_refused(asked):
    with pytest.raises(ConfigError, match=next(iter(asked))):
        of(**asked)
