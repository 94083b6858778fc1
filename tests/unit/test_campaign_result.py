import numpy as np
import pytest

from rasp.campaign.result import CampaignResult, read
from rasp.campaign.spec import CampaignSpec
from rasp.campaign.store import COLUMNS, OUTCOMES, ImageFacts, StratumFacts, open_or_create
from rasp.errors import ConfigError
from rasp.statistics import clustered_rate, wilson

TRIALS, IMAGES = 3000, 40
SPEC = CampaignSpec(
    network_digest="n",
    model="lenet5",
    data="digits",
    images=IMAGES,
    format="int8",
    accelerator="nv_small",
    accelerator_digest="a",
    fault_models={"RD": 1.0, "RD_BFLIP": 1.0},
    trials=TRIALS,
    confidence=0.9,
)
STRATA = [
    StratumFacts(layer, model, share * 0.5)
    for layer, share in (("conv1", 0.6), ("fc", 0.4))
    for model in ("RD", "RD_BFLIP")
]
COL = {name: index for index, name in enumerate(COLUMNS)}


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    block = np.zeros((TRIALS, len(COLUMNS)), dtype=np.int64)
    block[:, COL["trial"]] = np.arange(TRIALS)
    block[:, COL["stratum"]] = generator.integers(0, 4, TRIALS)
    block[:, COL["image"]] = generator.integers(0, IMAGES, TRIALS)
    block[:, COL["bit"]] = np.where(block[:, 1] % 2, generator.integers(0, 8, TRIALS), -1)
    fragile = block[:, COL["image"]] < 8
    for outcome in OUTCOMES:
        block[:, COL[outcome]] = generator.random(TRIALS) < np.where(fragile, 0.3, 0.02)
    block[:, COL["due"]] = 0
    return block


@pytest.fixture(scope="module")
def result(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("result") / "campaign.sqlite"
    with open_or_create(path, SPEC, chunk=TRIALS) as store:
        facts = [ImageFacts(i % 10, i % 10 if i else 9, 0.5, 1.0) for i in range(IMAGES)]
        store.describe(STRATA, facts)
        store.commit(0, rows, np.ones(TRIALS))
    return read(path)


def by_hand(rows, chosen, outcome):
    images = [rows[chosen & (rows[:, COL["image"]] == i)] for i in range(IMAGES)]
    return clustered_rate(
        [part[:, COL[outcome]].sum() for part in images], [len(part) for part in images], 0.9
    )


def test_overall_rates_are_clustered_by_image(result, rows):
    assert tuple(result.overall) == OUTCOMES
    for outcome, rate in result.overall.items():
        assert rate == by_hand(rows, np.ones(TRIALS, dtype=bool), outcome)
    assert result.overall["sdc1"].n_effective < 0.7 * TRIALS
    assert result.overall["due"].method == "clopper-pearson"


def test_rates_by_layer_and_model_count_their_own_trials(result, rows):
    stratum = rows[:, COL["stratum"]]
    assert list(result.by_layer["sdc1"]) == ["conv1", "fc"]
    assert result.by_layer["sdc1"]["fc"] == by_hand(rows, stratum >= 2, "sdc1")
    assert result.by_model["masked"]["RD"] == by_hand(rows, stratum % 2 == 0, "masked")


def test_rates_by_bit_leave_out_faults_without_a_bit(result, rows):
    assert list(result.by_bit["sdc1"]) == list(range(8))
    assert result.by_bit["sdc1"][3] == by_hand(rows, rows[:, COL["bit"]] == 3, "sdc1")


def test_two_dimensions_make_the_cells_of_a_heat_map(result, rows):
    cells = result.rates("sdc5", "layer", "bit")
    assert set(cells) == {(layer, bit) for layer in ("conv1", "fc") for bit in range(8)}
    chosen = (rows[:, COL["stratum"]] >= 2) & (rows[:, COL["bit"]] == 5)
    assert cells["fc", 5] == by_hand(rows, chosen, "sdc5")
    assert sum(cell.n for cell in cells.values()) == (rows[:, COL["bit"]] >= 0).sum()


def test_accuracy_is_of_the_fault_free_network(result):
    assert result.accuracy == wilson(IMAGES - 1, IMAGES, 0.9)


def test_shares_of_a_layer_add_over_its_models(result):
    assert result.layer_shares == pytest.approx({"conv1": 0.6, "fc": 0.4})
    assert result.complete


@pytest.mark.parametrize("arguments", [("sdc2", "layer"), ("sdc1", "layr"), ("sdc1",)])
def test_names_that_do_not_exist_are_refused(result, arguments):
    with pytest.raises(ConfigError):
        result.rates(*arguments)


def test_a_campaign_without_a_finished_trial_has_no_rate(tmp_path):
    with open_or_create(tmp_path / "a.sqlite", SPEC):
        pass
    empty = read(tmp_path / "a.sqlite")
    assert isinstance(empty, CampaignResult)
    assert (empty.trials, empty.complete) == (0, False)
    assert empty.by_layer["sdc1"] == {}
    with pytest.raises(ConfigError, match="finished trial"):
        empty.overall  # noqa: B018
