from pathlib import Path

import pytest

from rasp.errors import ConfigError
from rasp.pruning.importance import CRITERIA
from rasp.study import load
from rasp.study.summary import directory_of

STUDIES = Path(__file__).parents[2] / "studies"
STUDY = """
name = "small"
model = "lenet5"
data = "digits"
fine_tuning = 1
seeds = [0]
budgets = [0.5]
choice = { trials = 10, images = 10 }
campaign = { trials = 10, images = 10 }
[[arms]]
name = "magnitude"
criterion = "magnitude"
[[arms]]
name = "ours"
criterion = "reliability"
lam = [0.25, 0.5]
[[arms]]
name = "placebo"
criterion = "placebo"
like = "ours"
"""


def read(tmp_path, text=STUDY):
    file = tmp_path / "study.toml"
    file.write_text(text)
    return load(file)


def test_a_study_is_read_with_its_defaults(tmp_path):
    plan = read(tmp_path)
    assert plan.formats == ("fp32", "int8")
    assert plan.campaign.faults == {"int8": "nvdla"}
    assert plan.arm("ours").candidates == ((0.25, 0.0), (0.5, 0.0))


def test_directories_name_what_was_chosen_and_nothing_else(tmp_path):
    plan = read(tmp_path)
    assert directory_of(0.5, plan.arm("magnitude"), 0.5, 0.0) == "50/magnitude"
    assert directory_of(0.25, plan.arm("ours"), 0.25, 0.0) == "25/ours-lambda-0.25"
    assert (
        directory_of(0.5, plan.arm("placebo"), 0.25, 0.01) == "50/placebo-lambda-0.25-upsets-0.01"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "placebo"', 'name = "ours"', "a name of its own"),
        ('like = "ours"', 'like = "theirs"', "'theirs', which is no arm before it"),
        ('name = "magnitude"', 'name = "size"', "baseline 'magnitude' is none of the arms"),
        ("budgets = [0.5]", "budgets = [1.5]", "budgets.0: Input should be less than 1, got 1.5"),
        ("seeds = [0]", "seeds = []", "seeds"),
        ("seeds = [0]", "seeds = [0", "is not TOML"),
        ("fine_tuning = 1", "fine_tunning = 1", "fine_tun"),
        ('name = "small"', 'name = "../small"', "name"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_a_sentence(tmp_path, old, new, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, STUDY.replace(old, new, 1))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.toml"):
        load(tmp_path / "no.toml")


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda file: file.stem)
def test_studies_that_ship_are_read(file):
    plan = load(file)
    assert plan.name == file.stem
    named = {arm.name for arm in plan.arms}
    assert named >= {
        *("random", "magnitude", "activation", "taylor"),
        *("keep-vulnerable", "reliability", "placebo"),
    }
    assert all(arm.criterion in CRITERIA for arm in plan.arms)
