"""Traces of jobs: public formats, generated ones, and what is refused."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from simtrain.errors import InputError
from simtrain.workload import JobTrace
from simtrain.workload.job_trace_formats import FORMATS, Row
from simtrain.workload.job_traces import JobGenerator

SWF = """; Version: 2.2
; MaxNodes: 16
  1  100 5 3600  8 -1 -1  4 7200 -1 1 1 1 1 1 1 -1 -1
  2  160 0   -1 16 -1 -1 16 7200 -1 5 1 1 1 1 1 -1 -1
  3  170 0    0  2 -1 -1 -1 7200 -1 1 1 1 1 1 1 -1 -1
"""
PHILLY = json.dumps(
    [
        {
            "jobid": "a", "submitted_time": "2017-10-09 07:00:00", "vc": "v", "user": "u", "status": "Pass",
            "attempts": [
                {"start_time": "2017-10-09 07:01:00", "end_time": "2017-10-09 07:11:00", "detail": [{"ip": "m1", "gpus": ["gpu0", "gpu1"]}]},
                {"start_time": "2017-10-09 08:00:00", "end_time": "2017-10-09 08:05:00", "detail": [{"ip": f"m{i}", "gpus": ["gpu0", "gpu1"]} for i in (1, 2)]},
            ],
        },
        {"jobid": "b", "submitted_time": "2017-10-09 07:00:30", "attempts": []},
        {"jobid": "c", "submitted_time": "2017-10-09 07:00:40", "attempts": [{"start_time": "None", "end_time": None, "detail": []}]},
        {
            "jobid": "d", "submitted_time": "2017-10-09 06:59:00",
            "attempts": [{"start_time": "2017-10-09 06:59:30", "end_time": "2017-10-09 06:59:30", "detail": [{"ip": "m1", "gpus": ["gpu7"]}]}],
        },
    ]
)  # fmt: skip
HELIOS = """job_id,user,vc,jobname,gpu_num,cpu_num,node_num,state,submit_time,start_time,end_time,duration,queue
1,u,v,j,8,32,1,COMPLETED,2020-04-01 00:00:30,2020-04-01 00:01:00,2020-04-01 01:01:00,3600,30
2,u,v,j,0,4,1,COMPLETED,2020-04-01 00:00:00,2020-04-01 00:00:00,2020-04-01 00:00:10,10,0
3,u,v,j,1,4,1,FAILED,2020-04-01 00:00:10,2020-04-01 00:00:10,2020-04-01 00:00:10,0,0
"""
TIRESIAS = "job_id,num_gpu,submit_time,iterations,model_name,duration,interval\n1,1,10,1000,vgg19,164,0\n2,8,40,1000,vgg11,147,30\n"
CSV = "job_id,submit_s,gpus,duration_s,priority\n9,100,2,60.5,1\n8,50,1,0,0\n7,60,0,9,0\n"


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("swf", SWF, [Row(0, 4, 3600), Row(70, 2, 1)]),  # requested before allocated; a job without run time never ran
        ("philly", PHILLY, [Row(60, 4, 900), Row(0, 1, 1)]),  # attempts add up, the widest counts
        ("helios", HELIOS, [Row(20, 8, 3600), Row(0, 1, 1)]),  # a job without GPUs is left out, and does not set the origin
        ("tiresias", TIRESIAS, [Row(0, 1, 164), Row(30, 8, 147)]),
        ("csv", CSV, [Row(100, 2, 60.5, 1), Row(50, 1, 1, 0)]),  # keeps its own origin
    ],
)
def test_formats(name: str, text: str, rows: list[Row]) -> None:
    assert FORMATS[name](text, "t") == rows


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("csv", "a,b\n1,2\n", "t: no column 'submit_s'"),
        ("csv", "submit_s,gpus,duration_s\n1,2\n", "t: line 2: has not as many fields as the 3 of the first line"),
        ("csv", "submit_s,gpus,duration_s\n1,2,x\n", "t: line 2: duration_s: 'x' is no number"),
        ("csv", "submit_s,gpus,duration_s\n1,2,nan\n", "t: line 2: duration_s: 'nan' is no number"),
        ("csv", "submit_s,gpus,duration_s\n1,1.5,3\n", "t: line 2: gpus: '1.5' is no whole number"),
        ("swf", "1 2 3\n", "t: line 1: 3 fields"),
        ("philly", "{}", ""),
        ("philly", "[1]", "t: is no Philly job log"),
        ("philly", "[", "t: is no Philly job log"),
        ("philly", '[{"attempts": [], "submitted_time": "noon"}]', "t: job 0: 'noon' is no time"),
        ("helios", HELIOS.replace("2020-04-01 00:00:30", "yesterday"), "t: line 2: 'yesterday' is no time"),
    ],
)
def test_a_bad_trace_is_refused(name: str, text: str, says: str) -> None:
    if not says:
        assert FORMATS[name](text, "t") == []
        return
    with pytest.raises(InputError) as caught:
        FORMATS[name](text, "t")
    assert says in str(caught.value)


def test_a_file_lies_beside_the_yaml_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "t.csv").write_text(CSV)
    (tmp_path / "traces" / "t.yaml").write_text("file: t.csv\n")
    monkeypatch.chdir(tmp_path)
    trace = JobTrace.load("traces/t.yaml")
    assert (trace.file, len(trace.jobs(0))) == ("traces/t.csv", 2)
    assert len(JobTrace.load("traces/t.yaml", {"max_jobs": 1}).jobs(0)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file: none.csv\n", "none.csv: no such trace"),
        ("table: 'submit_s,gpus,duration_s'\n", "holds no job"),
        ("description: nothing\n", "give one of table, file and generate (none given)"),
        ("file: a\ntable: b\n", "table and file given"),
        ("table: b\nformat: swf\n", "format: belongs to file"),
        ("generate: {num_jobs: 1, mean_gap: 1 s, gpus: {0: 1}, median_duration: 1 s}\n", "a job has 1 to"),
        ("generate: {num_jobs: 1, mean_gap: 1 s, gpus: {1: 0}, median_duration: 1 s}\n", "not all of them zero"),
        ("generate: {num_jobs: 1, mean_gap: 1, gpus: {1: 1}, median_duration: 1 s}\n", "has no unit"),
    ],
)
def test_a_bad_workload_is_refused(text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        JobTrace.load("t.yaml").jobs(0)
    assert says in str(caught.value)


def test_a_generated_trace_has_the_stated_distributions() -> None:
    """Mean and variation of the gaps, shares of sizes and priorities, median and spread of run times: each within three standard errors."""
    n = 3000
    generator = JobGenerator(
        num_jobs=n, mean_gap=500, burstiness=2, gpus={1: 3, 8: 1}, median_duration=5000, duration_sigma=0.5, longest=20000, priorities={0: 0.9, 5: 0.1}
    )
    rows = generator.rows(seed=1)
    gaps = [b.submit - a.submit for a, b in pairwise(rows)]
    assert statistics.fmean(gaps) == pytest.approx(500, abs=3 * 1000 / n**0.5)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(2, rel=0.15)
    assert Counter(row.gpus for row in rows)[1] / n == pytest.approx(0.75, abs=3 * (0.75 * 0.25 / n) ** 0.5)
    assert Counter(row.priority for row in rows)[5] / n == pytest.approx(0.1, abs=3 * (0.1 * 0.9 / n) ** 0.5)
    assert statistics.median(row.duration for row in rows) == pytest.approx(5000, rel=3 * 1.2533 * 0.5 / n**0.5)
    assert max(row.duration for row in rows) == 20000


def test_jobs_are_drawn_by_name() -> None:
    """A longer trace begins like a shorter one, and another seed is another trace."""
    trace = JobTrace.load("steady_1k")
    shorter = JobTrace.load("steady_1k", {"generate.num_jobs": 50})
    assert trace.jobs(3)[:50] == shorter.jobs(3)
    assert shorter.jobs(3) != shorter.jobs(4)
    assert trace.is_random and not JobTrace.load("tiresias_60").is_random
