"""Wherever chunks run, and whatever is killed meanwhile, a campaign ends with the same rows."""

from __future__ import annotations

import builtins
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import OrderedDict
from contextlib import closing
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rasp.campaign.executors import InProcess, Processes, Ray, processes
from rasp.campaign.job import Job, Task, Worker
from rasp.campaign.runner import specify
from rasp.data.registry import load
from rasp.errors import ConfigError, PrerequisiteError
from rasp.faults.models import FIDELITY_MIX
from rasp.network.float_ops import FloatArithmetic
from rasp.network.lower import lower
from rasp.nvdla import config
from rasp.quantization.calibrate import quantize

FORMATS = ["fp32", "fp16", "int8"]
TRIALS, CHUNK = 1200, 100
SECONDS = 60
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the ray extra is not installed")
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@cache
def job_of(number_format):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = OrderedDict(
            conv=nn.Conv2d(1, 6, 5, stride=2),
            relu=nn.ReLU(),
            flat=nn.Flatten(),
            fc=nn.Linear(864, 10),
        )
        model = nn.Sequential(layers).eval()
    digits = load("digits")
    split = digits.test.take(30)
    images, labels = digits.tensor(split), torch.from_numpy(split.labels)
    network = lower(model, images[:1])
    if number_format == "int8":
        network, _ = quantize(network, images)
    elif number_format == "fp16":
        network = network.with_arithmetic(FloatArithmetic("fp16"))
    accelerator = config.load("nv_small")
    spec = specify(
        network,
        images,
        accelerator,
        model="tiny",
        data="digits",
        fault_models=FIDELITY_MIX,
        trials=TRIALS,
        seed=11,
    )
    return Job(spec, network, accelerator, images, labels)


def tasks():
    return [Task(start // CHUNK, range(start, start + CHUNK)) for start in range(0, TRIALS, CHUNK)]


@cache
def expected(number_format):
    return list(InProcess(Worker(job_of(number_format))).run(tasks()))


def assert_same(found, number_format):
    found = sorted(found, key=lambda pair: pair[0].chunk)
    for (task, rows), (wanted, alike) in zip(found, expected(number_format), strict=True):
        assert task == wanted
        assert np.array_equal(rows.columns, alike.columns)
        assert np.array_equal(rows.weight, alike.weight)


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_the_rows_of_this_process(number_format, workers):
    with closing(Processes(job_of(number_format), workers)) as executor:
        assert_same(executor.run(tasks()), number_format)
        assert len(set(executor.pids)) == workers


def test_killed_workers_are_replaced_and_all_end_when_closed():
    executor = Processes(job_of("int8"), 2)
    results = executor.run(tasks()[:8])
    found = [next(results)]
    first = executor.pids[0]
    os.kill(first, signal.SIGKILL)
    found += [next(results) for _ in range(4)]
    second = executor.pids[0]
    os.kill(second, signal.SIGKILL)
    found += results
    pids = executor.pids
    found += executor.run(tasks()[8:])
    assert executor.pids == pids, "workers stay for the next tasks"
    assert not {first, second} & set(pids)
    assert_same(found, "int8")
    executor.close()
    assert executor.pids == ()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_that_keep_dying_are_given_up(monkeypatch):
    monkeypatch.setattr(processes, "_serve", builtins.id)  # a process that ends without a word
    executor = Processes(job_of("int8"), 2)
    with pytest.raises(PrerequisiteError, match=r"3 worker processes in a row died.*--workers"):
        list(executor.run(tasks()))
    assert executor.pids == ()


def broken_job():
    job = job_of("int8")
    spec = job.spec.model_copy(update={"layers": ("conv1",)})
    return Job(spec, job.network, job.accelerator, job.images, job.labels)


def test_an_error_in_a_process_arrives_as_itself():
    executor = Processes(broken_job(), 1)
    with pytest.raises(ConfigError) as here:
        Worker(broken_job())
    with pytest.raises(ConfigError) as there:
        list(executor.run(tasks()))
    assert str(there.value) == str(here.value)
    assert executor.pids == ()


# Ray


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two machines with one CPU each, to which others can be added."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@needs_ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number_format", FORMATS)
def test_ray_gives_the_rows_of_this_process(cluster, number_format, capfd):
    with closing(Ray(job_of(number_format), cluster.address)) as executor:
        assert executor.slots == 2
        assert_same(executor.run(tasks()), number_format)
    assert capfd.readouterr().out == ""


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_lost_node_costs_no_row(cluster):
    with closing(Ray(job_of("int8"), cluster.address)) as executor:
        lost = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        results = executor.run(tasks())
        found = [next(results) for _ in range(2)]
        cluster.remove_node(lost, allow_graceful=False)
        found += results
    assert_same(found, "int8")


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_an_error_on_ray_arrives_as_itself(cluster):
    with (
        closing(Ray(broken_job(), cluster.address)) as executor,
        pytest.raises(ConfigError, match="conv1"),
    ):
        list(executor.run(tasks()))


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_not_there():
    with pytest.raises(PrerequisiteError, match="ray start --head"):
        Ray(job_of("int8"), "127.0.0.1:1")


# The command line, stopped by signals

RASP = [sys.executable, "-c", "from rasp.cli.app import main; main()"]
INJECT = ["inject", "--images", "20", "--trials", "12000", "--seed", "3", "--json"]


def start(out, *options):
    return subprocess.Popen(
        [*RASP, *INJECT, "--model", str(out.parent / "net"), "--out", str(out), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(out, *options):
    process = start(out, *options)
    answer, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    return json.loads(answer)


def stored(out):
    connection = sqlite3.connect(out / "campaign.sqlite")
    found = connection.execute("SELECT * FROM trials ORDER BY trial").fetchall()
    connection.close()
    return found


def chunks(out):
    try:
        connection = sqlite3.connect(f"file:{out / 'campaign.sqlite'}?mode=ro", uri=True)
        with closing(connection):
            return connection.execute("SELECT count(*) FROM chunks").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def session(pid):
    """Living processes of a session but its leader."""
    members = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, leader = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(leader) == pid and state != "Z":
            members.add(int(stat.parent.name))
    return members - {pid}


def wait_until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("stopped")
    train = ["train", "--model", "lenet5", "--data", "digits", "--epochs", "1"]
    subprocess.run([*RASP, *train, "--out", str(home / "net")], check=True, capture_output=True)
    return home


@pytest.fixture(scope="module")
def undisturbed(home):
    finish(home / "undisturbed")
    return stored(home / "undisturbed")


@needs_proc
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_driver_leaves_no_worker_and_can_go_on(home, undisturbed, stop):
    out = home / f"stopped-{stop.name}"
    driver = start(out, "--workers", "2")
    wait_until(lambda: chunks(out) >= 1 or driver.poll() is not None)
    assert len(session(driver.pid)) >= 2
    if stop == signal.SIGINT:
        os.killpg(driver.pid, stop)  # as a terminal does: the workers get it too
    else:
        driver.send_signal(stop)
    wait_until(lambda: not session(driver.pid))
    _, messages = driver.communicate(timeout=SECONDS)
    assert driver.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in messages
    if stop == signal.SIGINT:
        assert "Go on with: rasp inject" in messages

    kept = stored(out)
    assert 0 < len(kept) < len(undisturbed)
    assert set(kept) <= set(undisturbed)
    finish(out)
    assert stored(out) == undisturbed
