"""A campaign on digits, stopped by signals at arbitrary moments, ends with undisturbed rows."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from functools import cache
from itertools import pairwise

import pytest

from rasp.campaign.result import read
from rasp.errors import PrerequisiteError

TRIALS, CHUNK = 4000, 100

CAMPAIGN = f"""
import sys
from collections import OrderedDict

import torch
from torch import nn

from rasp.campaign.runner import inject, specify
from rasp.data.registry import load
from rasp.faults.models import FIDELITY_MIX
from rasp.network.lower import lower
from rasp.nvdla import config
from rasp.quantization.calibrate import quantize

store, format = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(OrderedDict(
    conv=nn.Conv2d(1, 6, 5, stride=2), relu=nn.ReLU(), flat=nn.Flatten(), fc=nn.Linear(864, 10),
)).eval()
digits = load("digits")
split = digits.test.take(30)
images, labels = digits.tensor(split), torch.from_numpy(split.labels)
network = lower(model, images[:1])
if format == "int8":
    network, _ = quantize(network, images)
accelerator = config.load("nv_small")
spec = specify(
    network, images, accelerator,
    model="tiny", data="digits", fault_models=FIDELITY_MIX, trials={TRIALS}, seed=11,
)
inject(network, images, labels, accelerator, spec, store, chunk={CHUNK})
"""


def start(path, number_format):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CAMPAIGN, str(path), number_format],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(path, number_format):
    process = start(path, number_format)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages


def finished_trials(path):
    try:
        return read(path).trials
    except PrerequisiteError:
        return 0


def stop_after(path, number_format, trials, stop):
    """Run until ``trials`` are in the store and a little longer, then send a signal."""
    process = start(path, number_format)
    deadline = time.monotonic() + 120
    while finished_trials(path) < trials and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.Random(trials).uniform(0, 0.05))
    process.send_signal(stop)
    _, messages = process.communicate(timeout=60)
    assert process.returncode != 0, "the campaign ended before it could be stopped"
    if stop == signal.SIGINT:
        assert messages.rstrip().endswith("KeyboardInterrupt")


def rows(path):
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT * FROM trials ORDER BY trial").fetchall()
    connection.close()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Path of the undisturbed store of a number format, run when first asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @cache
    def store_of(number_format):
        finish(folder / number_format, number_format)
        return folder / number_format

    return store_of


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number_format", "stop", "moments"),
    [
        ("int8", signal.SIGKILL, (1, 1000, 2000)),
        ("fp32", signal.SIGKILL, (1, 1500)),
        ("fp32", signal.SIGINT, (1,)),
    ],
)
def test_stopped_and_resumed_is_row_for_row_the_undisturbed_campaign(
    tmp_path, undisturbed, number_format, stop, moments
):
    expected = rows(undisturbed(number_format))
    assert [row[0] for row in expected] == list(range(TRIALS))

    path = tmp_path / "stopped.sqlite"
    kept = [0]
    for trials in moments:
        stop_after(path, number_format, trials, stop)
        kept.append(len(rows(path)))
        assert rows(path) == expected[: kept[-1]]
        assert kept[-1] % CHUNK == 0
    assert all(before < after for before, after in pairwise(kept))
    assert kept[-1] < TRIALS

    finish(path, number_format)
    assert rows(path) == expected
    assert read(path).overall == read(undisturbed(number_format)).overall
