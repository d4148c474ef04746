"""Whatever a user gets wrong is met with one message that says where, what and how to mend it, and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from simtrain import cli


class Bad(NamedTuple):
    """A command line, the files beside it, and what the message has to say."""

    args: tuple[str, ...]
    where: str
    what: str
    mend: str
    files: Mapping[str, str | bytes] = {}


SYSTEM = ("run", "dense/megatron_lm")
SMALL = (*SYSTEM, "--workload", "gpt_tiny", "--cluster", "dgx_a100_40gb_ib", "--set", "cluster.num_nodes=1")
"""Runs, on 8 accelerators, with 8 layers, 16 heads and a batch of 64."""
CLUSTER = "extends: dgx_a100_40gb_ib\n"
JOB = "extends: gpt_tiny\n"
NIC = CLUSTER + "node: {nic: {%s}}\n"
RATE = "write e.g. '400 Gbit/s'"
HEADER = "id,kind,op,gpu,dtype,m,n,k,batch,seq,heads,kv_heads,head_dim,causal,pass,latency_us,tflops,algbw_gbs,impl,source_key\n"


def cluster(text: str | bytes, where: str, what: str, mend: str = "", **files: str) -> Bad:
    """A cluster file ``c.yaml``; further files by name without ending."""
    args = (*SYSTEM, "--workload", "gpt_tiny", "--cluster", "c.yaml")
    return Bad(args, where, what, mend, {"c.yaml": text, **{f"{name}.yaml": other for name, other in files.items()}})


def job(text: str, where: str, what: str, mend: str = "") -> Bad:
    """A workload file ``w.yaml``."""
    return Bad((*SYSTEM, "--workload", "w.yaml", "--cluster", "dgx_a100_40gb_ib"), where, what, mend, {"w.yaml": text})


def sets(*settings: str, says: tuple[str, str, str]) -> Bad:
    """The small run with some settings."""
    return Bad((*SMALL, *(word for setting in settings for word in ("--set", setting))), *says)


def module(text: str | bytes, where: str, what: str, mend: str, name: str = "my.py") -> Bad:
    """A system file ``my.py``."""
    return Bad(("run", name, *SMALL[2:]), where, what, mend, {"my.py": text})


FILES = {
    "unknown key": cluster(CLUSTER + "numnodes: 4\n", "c.yaml: numnodes", "unknown key 'numnodes'", "did you mean 'num_nodes'"),
    "unknown nested key": cluster(NIC % "latencey: 1 us", "c.yaml: node.nic.latencey", "unknown key", "did you mean 'latency'?"),
    "unknown key in a list": cluster(
        CLUSTER + "degradations: [{link: x, factr: 1}]\n", "c.yaml: degradations.0.factr", "unknown key", "did you mean 'factor'?"
    ),
    "no unit": cluster(NIC % "bandwidth: 400", "c.yaml: node.nic.bandwidth", "400 has no unit", RATE),
    "no unit, quoted": cluster(NIC % "bandwidth: '400'", "c.yaml: node.nic.bandwidth", "'400' has no unit", RATE),
    "wrong dimension": cluster(NIC % "bandwidth: 400 GB", "c.yaml: node.nic.bandwidth", "a bandwidth is needed here", RATE),
    "unknown unit": cluster(NIC % "bandwidth: 400 Gbit/week", "c.yaml: node.nic.bandwidth", "unknown unit 'Gbit/week'", RATE),
    "negative bandwidth": cluster(NIC % "bandwidth: -4 Gbit/s", "c.yaml: node.nic.bandwidth", "'-4 Gbit/s'", "must be greater than zero"),
    "negative latency": cluster(NIC % "latency: -1 us", "c.yaml: node.nic.latency", "'-1 us'", "must be at least zero"),
    "zero bandwidth": cluster(NIC % "bandwidth: 0 GB/s", "c.yaml: node.nic.bandwidth", "'0 GB/s'", "must be greater than zero"),
    "bare zero bandwidth": cluster(NIC % "bandwidth: 0", "c.yaml: node.nic.bandwidth", "0 must", "greater than zero"),
    "NaN quantity": cluster(NIC % "bandwidth: .nan", "c.yaml: node.nic.bandwidth", "nan", "is not finite"),
    "infinite quantity": cluster(NIC % "bandwidth: .inf", "c.yaml: node.nic.bandwidth", "inf", "is not finite"),
    "overflowing quantity": cluster(NIC % "bandwidth: 1e999 GB/s", "c.yaml: node.nic.bandwidth", "1e999 GB/s", "is not finite"),
    "NaN with a unit": cluster(NIC % "bandwidth: nan GB/s", "c.yaml: node.nic.bandwidth", "is not a quantity", "write a number and a unit"),
    "NaN number": cluster(CLUSTER + "fabric_efficiency: .nan\n", "c.yaml: fabric_efficiency", "finite number", "got nan"),
    "number too large": cluster(CLUSTER + "fabric_efficiency: 1.5\n", "c.yaml: fabric_efficiency", "less than or equal to 1", "got 1.5"),
    "text for a count": cluster(CLUSTER + "num_nodes: many\n", "c.yaml: num_nodes", "got 'many'", "a whole number is needed"),
    "half a node": cluster(CLUSTER + "num_nodes: 2.5\n", "c.yaml: num_nodes", "got 2.5", "a whole number is needed"),
    "yes for a count": cluster(CLUSTER + "num_nodes: yes\n", "c.yaml: num_nodes", "got True", "a number is needed"),
    "no nodes": cluster(CLUSTER + "num_nodes: 0\n", "c.yaml: num_nodes", "got 0", "greater than 0"),
    "key without value": cluster(CLUSTER + "num_nodes:\n", "c.yaml: num_nodes", "got nothing", "a whole number is needed"),
    "a list for a count": cluster(CLUSTER + "num_nodes: [1, 2]\n", "c.yaml: num_nodes", "got [1, 2]", "a whole number is needed"),
    "a number for an object": cluster(CLUSTER + "node: 3\n", "c.yaml: node", "got 3", "a mapping of keys and values, or a name in nodes"),
    "text for an object": cluster(CLUSTER + "topology: flat\n", "c.yaml: topology", "got 'flat'", "a mapping of keys and values is needed"),
    "text for a list": cluster(CLUSTER + "sources: me\n", "c.yaml: sources", "got 'me'", "write 'sources: [...]'"),
    "a number for text": cluster(CLUSTER + "description: 3\n", "c.yaml: description", "got 3", "put it in quotes"),
    "a value that is not offered": cluster(
        CLUSTER + "topology: {kind: torus}\n", "c.yaml: topology.kind", "'torus' is not allowed", "'rail_optimised', 'fat_tree'"
    ),
    "a number for a key": cluster(CLUSTER + "3: 4\n", "c.yaml: 3", "a key is text", "put it in quotes"),
    "missing key": cluster("node: dgx_a100\nnum_nodes: 2\n", "c.yaml: topology", "required key is missing", "write 'topology: ...'"),
    "duplicate key": cluster(CLUSTER + "num_nodes: 2\nnum_nodes: 3\n", "c.yaml: line 3", "'num_nodes' is given twice", "remove one"),
    "cards that do not divide": cluster(CLUSTER + "node: {num_accelerators: 7}\n", "c.yaml: node", "nic.count 8", "nor a multiple of num_accelerators 7"),
    "extends itself": cluster("extends: c.yaml\n", "c.yaml", "cyclic reference", "remove one 'extends'"),
    "extends in a circle": cluster("extends: d.yaml\n", "c.yaml", "cyclic reference", "remove one 'extends'", d="extends: c.yaml\n"),
    "a circle of names": cluster(
        CLUSTER + "node: n.yaml\n",
        "a.yaml",
        "cyclic reference",
        "remove one 'extends' or name",
        n="extends: dgx_a100\naccelerator: a.yaml\n",
        a="extends: b.yaml\n",
        b="extends: a.yaml\n",
    ),
    "extends nothing": cluster("extends: nothing_like_it\n", "c.yaml: extends", "unknown name 'nothing_like_it' in clusters", "allowed: "),
    "extends a number": cluster("extends: 3\n", "c.yaml: extends", "not 3", "the name of another file of this kind"),
    "unknown node": cluster(CLUSTER + "node: dgx_a10\n", "c.yaml: node", "unknown name 'dgx_a10' in nodes", "did you mean 'dgx_a100'"),
    "unknown accelerator": cluster(CLUSTER + "node: {accelerator: a100}\n", "c.yaml: node: accelerator", "unknown name 'a100'", "did you mean 'a100_sxm_40gb'"),
    "missing file": cluster(CLUSTER + "node: missing.yaml\n", "c.yaml: node: missing.yaml", "no such file", "mend the path"),
    "empty": cluster("", "c.yaml", "the file is empty", "write keys and values"),
    "comments only": cluster("# later\n", "c.yaml", "the file is empty", "write keys and values"),
    "a list": cluster("- a\n- b\n", "c.yaml", "not a list", "a mapping of keys and values is needed"),
    "text": cluster("just text\n", "c.yaml", "not a str", "a mapping of keys and values is needed"),
    "not UTF-8": cluster(b"description: \xff\xfe\n", "c.yaml", "byte 13 is not UTF-8", "save the file as UTF-8"),
    "tab": cluster("node:\n\tnic: 1\n", "c.yaml: line 2", "'\\t'", "indent with spaces"),
    "two colons": cluster("node: a: b\n", "c.yaml: line 1", "not valid YAML", "put text with a colon in quotes"),
    "open bracket": cluster("node: {a: [1, 2\n", "c.yaml: line 2", "not valid YAML", "expected ',' or ']'"),
    "unknown alias": cluster("node: *x\n", "c.yaml: line 1", "not valid YAML", "undefined alias 'x'"),
    "code in YAML": cluster("a: !!python/object:os.system x\n", "c.yaml: line 1", "not valid YAML", "could not determine a constructor"),
    "two documents": cluster("a: 1\n---\nb: 2\n", "c.yaml: line 2", "not valid YAML", "another document"),
    "control character": cluster("a: \x00\n", "c.yaml", "not valid YAML", "special characters are not allowed"),
    "no such day": cluster("a: 2020-13-45\n", "c.yaml", "not valid YAML", "month must be in 1..12"),
    "huge nesting": cluster("node: " + "[" * 3000 + "]" * 3000, "c.yaml", "not usable", "nested too deeply"),
    "huge count": cluster(CLUSTER + "num_nodes: 1e400\n", "c.yaml: num_nodes", "finite number", "got inf"),
    "unknown model": job(JOB + "model: gpt5\n", "w.yaml: model", "unknown name 'gpt5' in models", "did you mean 'gpt3_175b'"),
    "hidden and heads": job(JOB + "model: {heads: 5}\n", "w.yaml: model", "hidden 1024 is not a multiple of heads 5", "set head_dim"),
    "heads and kv_heads": job(JOB + "model: {kv_heads: 3}\n", "w.yaml: model", "heads 16", "is not a multiple of kv_heads 3"),
    "top_k": job(JOB + "model: {moe: {experts: 2, top_k: 4, expert_ffn: 8}}\n", "w.yaml: model.moe", "top_k 4", "more than the 2 experts"),
    "unknown number format": job(JOB + "dtype: float16\n", "w.yaml: dtype", "'float16' is not allowed", "'bf16', 'fp16'"),
    "a time for tokens": job(JOB + "seq_len: 1 us\n", "w.yaml: seq_len", "got '1 us'", "a whole number is needed"),
}

GQA = ("workload.model.heads=24", "workload.model.hidden=1536")
MEND = "change a degree or cluster.num_nodes"

SETTINGS = {
    "tp and heads": sets(*("workload.model.heads=12", "workload.model.hidden=1536"), "tp=8", says=("tp=8", "does not divide heads=12", "a divisor of 12")),
    "tp and ffn": sets("workload.model.ffn=1004", "tp=8", says=("tp=8", "does not divide ffn=1004 of gpt_tiny", "choose a divisor of 1004")),
    "tp below kv_heads": sets(*GQA, "workload.model.kv_heads=6", "tp=4", says=("tp=4", "kv_heads=6", "choose another tp")),
    "tp above kv_heads": sets(*GQA, "workload.model.kv_heads=3", "tp=8", says=("tp=8", "kv_heads=3", "choose another tp")),
    "cp and seq_len": sets("cp=8", "seq_len=1001", says=("cp=8", "does not divide seq_len=1001 of gpt_tiny", "change a degree or seq_len")),
    "sharded tokens": sets("tp=8", "seq_len=1001", says=("cp=1 x tp=8", "does not divide seq_len=1001", "change a degree or seq_len")),
    "chunks and layers": sets(*("pp=2", "vpp=2", "workload.model.layers=6"), says=("pp=2 x vpp=2 = 4", "does not divide layers=6", "choose a divisor of 6")),
    "more stages than layers": sets("pp=8", "workload.model.layers=4", says=("pp=8", "the model has 4 layers", "lower pp or vpp")),
    "given degrees and world": sets("tp=2", "pp=2", "dp=4", says=("tp=2 x cp=1 x pp=2 x dp=4 = 16 ranks", "has 8 accelerators", MEND)),
    "degrees that do not divide": sets("pp=3", says=("pp=3 = 3 ranks", "has 8 accelerators", MEND)),
    "degrees beyond the world": sets("tp=8", "pp=8", says=("tp=8 x cp=1 x pp=8 = 64 ranks", "has 8 accelerators", MEND)),
    "batch and dp": sets("global_batch_size=7", says=("global_batch_size=7", "not a multiple of dp=8 x microbatch_size=1", "change one of them")),
    "batch and microbatch": sets("microbatch_size=3", says=("global_batch_size=64", "not a multiple of dp=8 x microbatch_size=3", "change one")),
    "microbatches and pp": sets(
        *("pp=4", "vpp=2", "global_batch_size=6"), says=("interleaved schedule", "3 microbatches are not a multiple of pp=4", "change global_batch_size")
    ),
    "vpp under 1f1b": sets("vpp=2", "schedule=1f1b", says=("vpp=2", "got schedule=1f1b", "needs schedule=interleaved")),
    "interleaved without vpp": sets("schedule=interleaved", says=("schedule=interleaved", "got vpp=1", "use schedule=1f1b, or auto")),
    "groups of nothing sharded": sets("zero_group=4", says=("zero_group=4", "has no effect without zero", "or leave it out")),
    "kept but never gathered": sets("zero=1", "reshard_after_forward=false", says=("reshard_after_forward=False", "without zero=3", "or leave it out")),
    "every second of none": sets("recompute_every=2", says=("recompute_every=2", "has no effect without recompute=full", "set that too")),
    "two layers of none": sets("recompute=op", "recompute_layers=2", says=("recompute_layers=2", "without recompute=full", "set that too")),
    "unknown schedule": sets("schedule=zigzag", says=("schedule", "'zigzag' is not allowed", "'gpipe', '1f1b'")),
    "mistyped batch": sets("global_batch_size=80000000", says=("global_batch_size=80000000", "10,000,000 microbatches", "lower it, or raise")),
    "out of memory": sets(
        *("microbatch_size=8", "seq_len=65536"), says=("on each accelerator of pp 0", "out of memory", "raise tp, pp, zero")
    ),
    "unknown key": sets("tpp=2", says=("--set tpp", "unknown key of MegatronLM, workload and cluster", "did you mean 'tp'")),
    "unknown nested key": sets("nic.bandwith=1 GB/s", says=("--set nic.bandwith", "unknown key", "did you mean 'node.nic.bandwidth'")),
    "unknown key of a part": sets("cluster.tp=2", says=("--set cluster.tp", "unknown key 'tp'", "did you mean 'tdp'?")),
    "ambiguous key": sets("bandwidth=1 GB/s", says=("--set bandwidth", "is ambiguous", "write one of: node.nic.bandwidth, node.pcie.bandwidth")),
    "no equals sign": sets("tp", says=("--set tp", "write KEY=VALUE", "--set tp=8")),
    "no key": sets("=2", says=("--set =2", "write KEY=VALUE", "--set tp=8")),
    "same key twice": sets("tp=2", "tp=4", says=("--set tp", "given twice", "remove one")),
    "same key in two spellings": sets("num_nodes=4", says=("--set num_nodes", "means the same as cluster.num_nodes", "remove one")),
    "the whole cluster": sets("cluster=dgx_h100_eos", says=("--set cluster", "names the whole cluster", "give it with --cluster")),
    "no value": sets("tp=", says=("tp", "got nothing", "a whole number is needed")),
    "no unit": sets("nic.bandwidth=400", says=("clusters/dgx_a100_40gb_ib.yaml: node.nic.bandwidth", "400 has no unit", RATE)),
    "degree of zero": sets("tp=0", says=("dense/megatron_lm: tp", "got 0", "greater than or equal to 1")),
    "maybe": sets("pp_overlap=maybe", says=("dense/megatron_lm: pp_overlap", "got 'maybe'", "true or false is needed")),
    "unknown node": sets("cluster.node=dgx_a10", says=("--set node", "unknown name 'dgx_a10' in nodes", "did you mean 'dgx_a100'")),
    "unknown software": sets("software=megatron_2099", says=("--set software", "unknown name 'megatron_2099'", "did you mean 'megatron_2023'")),
    "nested too deeply": sets("tp=" + "[" * 3000, says=("dense/megatron_lm: tp", "got '[[[", "a whole number is needed")),
    "a format it lacks": sets("dtype=fp8", says=("kernels/ampere.yaml: gemm", "'fp8'", "allowed: bf16, fp16")),
    "a kernel it lacks": sets("software.attention=flash3", says=("kernels/ampere.yaml: attention", "no kernel 'flash3' on a100", "did you mean 'flash2'")),
}  # fmt: skip

BASE = "from simtrain import System\n"
STEP = "from simtrain.systems.step import StepSystem\n"
MODULES = {
    "import error": module("import nothing_here\n", "my.py:1", "No module named 'nothing_here'", "mend it"),
    "syntax error": module("x = 1\ndef (:\n", "my.py", "SyntaxError", "line 2"),
    "raises": module("x = 1\n\ny = x / 0\n", "my.py:3", "ZeroDivisionError", "mend it"),
    "exits": module("raise SystemExit(3)\n", "my.py:1", "cannot be imported", "mend it"),
    "not UTF-8": module(b"\xff\xfe", "my.py", "cannot be imported", "invalid start byte"),
    "no system": module("x = 1\n", "my.py", "holds no System", "write 'class MySystem(System): ...'"),
    "no such class": module(BASE + "class My(System): ...\n", "my.py", "no class 'Myy'", "did you mean 'My'?", "my.py:Myy"),
    "another class": module("class My: ...\n", "my.py:My", "is not a System", "derive it from simtrain.System", "my.py:My"),
    "no simulate": module(BASE + "class My(System): ...\n", "my.py:My", "has no simulate(self, workload, cluster, options)", "derive from a kind"),
    "no build": module(STEP + "class My(StepSystem): ...\n", "my.py:My", "has no build(self, workload, cluster)", "write it"),
    "no layer_forward": module(
        "from simtrain.systems.training import TransformerTraining\nclass My(TransformerTraining): ...\n", "My", "has no layer_forward", "write it, see"
    ),
}  # fmt: skip

ON_TINY = ("--workload", "gpt_tiny", "--cluster", "dgx_a100_40gb_ib")
COMMANDS = {
    "no command": Bad((), "Usage: simtrain", "give a command", "compare"),
    "unknown command": Bad(("runn",), "simtrain --help", "No such command 'runn'", "Did you mean 'run'?"),
    "missing argument": Bad(("run",), "simtrain run --help", "Missing argument 'system'", "see 'simtrain run --help'"),
    "missing kind": Bad(("list",), "simtrain list --help", "Missing argument 'kind'", "Choose from: systems, clusters"),
    "unknown kind": Bad(("list", "things"), "'kind'", "'things' is not one of", "'systems', 'clusters'"),
    "extra argument": Bad(("run", "a", "b"), "simtrain run", "unexpected extra argument", "(b)"),
    "unknown flag": Bad((*SMALL, "--sed", "1"), "simtrain run --help", "No such option: --sed", "--seed"),
    "flag without value": Bad((*SMALL, "--seed"), "'--seed'", "requires an argument", "--help"),
    "text for a seed": Bad((*SMALL, "--seed", "x"), "'--seed'", "valid integer", "see 'simtrain run --help'"),
    "negative seed": Bad((*SMALL, "--seed", "-1"), "'--seed'", "greater than or equal to 0", "see 'simtrain run --help'"),
    "unknown fidelity": Bad((*SMALL, "--fidelity", "exact"), "'--fidelity'", "'exact' is not one of", "'analytic', 'fair', 'flow'"),
    "unknown engine": Bad((*SMALL, "--engine", "gpu"), "'--engine'", "'gpu' is not one of", "'auto', 'simpy', 'compiled'"),
    "unknown axis": Bad((*SMALL, "--unfold", "tp,xp"), "unfold", "unknown axis 'xp'", "allowed: tp, cp, dp, pp"),
    "unknown system": Bad(("run", "dense/megatron"), "system 'dense/megatron'", "unknown system", "did you mean 'dense/megatron_lm'"),
    "system without family": Bad(("run", "megascale"), "'megascale'", "unknown system", "did you mean 'dense/megascale'"),
    "unknown class of a file": Bad(("run", "dense/megascale:Nope"), "dense/megascale", "no class 'Nope'", "allowed: MegaScale"),
    "missing system file": Bad(("run", "my.py:My"), "my.py", "no such file", "give the path"),
    "missing module": Bad(("run", "nothing.here:My"), "nothing.here", "No module named 'nothing'", "check that the name is right"),
    "relative module": Bad(("run", "..here:My"), "'..here:My'", "unknown system", "package.module:Class"),
    "a function": Bad(("run", "json.decoder:JSONDecoder"), "json.decoder:JSONDecoder", "is not a System", "derive it"),
    "unknown workload": Bad((*SYSTEM, "--workload", "gpt_tny", *ON_TINY[2:]), "in jobs", "unknown name 'gpt_tny'", "did you mean 'gpt_tiny'"),
    "unknown cluster": Bad((*SYSTEM, *ON_TINY[:2], "--cluster", "dgx_b20"), "in clusters", "unknown name 'dgx_b20'", "did you mean 'dgx_b200'"),
    "missing cluster file": Bad((*SYSTEM, *ON_TINY[:2], "--cluster", "c.yaml"), "c.yaml", "no such file", "mend the path"),
    "another ending": Bad((*SYSTEM, *ON_TINY[:2], "--cluster", "c.json"), "'c.json' in clusters", "unknown name", "a path must end in .yaml"),
    "a path for a name": Bad((*SYSTEM, "--workload", "../jobs/gpt_tiny", *ON_TINY[2:]), "in jobs", "unknown name", "did you mean 'gpt_tiny'"),
    "a very long name": Bad((*SYSTEM, *ON_TINY[:2], "--cluster", "a" * 5000), "in clusters", "aaa...aaa", "allowed: "),
    "workload without cluster": Bad((*SYSTEM, *ON_TINY[:2]), "MegatronLM", "has no published set-up", "give --workload and --cluster"),
    "compare on half a set-up": Bad(("compare", "dense/megascale", *ON_TINY[:2]), "--workload and --cluster", "give both", "or neither"),
    "compare without set-up": Bad(("compare", "dense/megatron_lm"), "MegatronLM", "has no published set-up", "give --workload and --cluster"),
    "compare of two kinds": Bad(("compare", "dense/megascale", "rl/areal"), "rl/areal Rollouts", "on one workload", "compare those of one kind"),
    "compare with an unknown key": Bad(("compare", "dense/megascale", "--set", "tpp=2"), "--set tpp", "unknown key", "did you mean 'tp'"),
    "a picture of no kind": Bad((*SMALL, "--plot", "t.bmp", "--trace", "t.json"), "--plot t.bmp", "a picture ends in", ".svg or .png"),
    "a comparison of no kind": Bad(("compare", "dense/megascale", "--plot", "t"), "--plot t", "a picture ends in", ".svg or .png"),
    "a folder for a trace": Bad((*SMALL, "--trace", "."), "--trace .", "is a folder", "give the name of a file"),
    "nothing for a trace": Bad((*SMALL, "--trace", ""), "--trace", "is a folder", "give the name of a file"),
    "one file for two": Bad((*SMALL, "--trace", "a.svg", "--plot", "./a.svg"), "--trace and --plot", "both are a.svg", "different names"),
    "below a file": Bad((*SMALL, "--trace", "taken/t.json"), "--trace taken/t.json", "cannot be written", "choose another place", {"taken": ""}),
    "unwritable picture": Bad((*SMALL, "--trace", "new/t.json", "--plot", "/proc/no/t.svg"), "/proc/no/t.svg", "cannot be written", "choose another place"),
    "fit without table": Bad(("calibrate", "kernels", "--accelerator", "h100_sxm_80gb"), "'--table'", "Missing option", "see 'simtrain calibrate --help'"),
    "fit of an unknown device": Bad(
        ("calibrate", "kernels", "--accelerator", "h100", "--table", "t.csv"), "in accelerators", "unknown name 'h100'", "did you mean 'h100_sxm_80gb'"
    ),
    "fit into a missing folder": Bad(
        ("calibrate", "kernels", "--accelerator", "h100_sxm_80gb", "--table", "t.csv", "--out", "no/k.yaml"), "--out no/k.yaml", "no such folder", "make it"
    ),
    "validate without a table": Bad(("validate", "kernels"), "validate kernels", "give a table", "--table F.csv"),
    "validate kernels quickly": Bad(("validate", "kernels", "--quick"), "validate kernels", "options of 'validate torch'", "leave them out"),
    "validate torch with a table": Bad(("validate", "torch", "--table", "t.csv"), "validate torch", "--table has no effect", "leave it out"),
    "validate torch with constants from nowhere": Bad(("validate", "torch", "--machine", "m"), "--machine m", "no such folder", "--out of an earlier run"),
    "missing table": Bad(("validate", "kernels", "--table", "t.csv"), "t.csv", "no such table", "give a CSV file"),
    "table without columns": Bad(("validate", "kernels", "--table", "t.csv"), "t.csv", "columns", "are needed", {"t.csv": "a,b\n1,2\n"}),
    "table that is not UTF-8": Bad(("validate", "kernels", "--table", "t.csv"), "t.csv", "byte 0 is not UTF-8", "save the file as UTF-8", {"t.csv": b"\xff"}),
    "table without rows": Bad(("validate", "kernels", "--table", "t.csv"), "t.csv", "holds no row that can be compared", "give rows", {"t.csv": HEADER}),
}  # fmt: skip

BASELINE = json.dumps({"format": 1, "suite": "s", "suite_digest": "x", "simtrain": "1", "seed": 0, "machine": "m", "cases": {}})
"""Of a suite without cases."""
CASE = "budget: 1 s\ncases: {c: {category: primary, why: One has to be in., system: scheduling/fifo, workload: tiresias_60, cluster: dgx_b200, %s}}\n"
CHECK = ("check", "r.json", "--against", "b.json")


def suite(case: str, where: str, what: str, mend: str) -> Bad:
    """A suite file ``s.yaml`` of one case."""
    return Bad(("bench", "s.yaml"), where, what, mend, {"s.yaml": CASE % case})


SUITES = {
    "unknown suite": Bad(("bench", "fats"), "in suites", "unknown name 'fats'", "did you mean 'fast'"),
    "no seeds": Bad(("bench", "fast", "--seeds", "0"), "'--seeds'", "greater than or equal to 1", "see 'simtrain bench --help'"),
    "results into a folder": Bad(("bench", "fast", "--out", "."), "--out .", "is a folder", "give the name of a file"),
    "nothing to put under test": Bad(("bench", "fast", "--system", "dense/megascale"), "--system dense/megascale", "names its own system", "cases that do not"),
    "no judged metric": suite("seeds: 1", "s.yaml: cases.c", "name at least one metric", "lower, higher"),
    "a metric that does not exist": suite("lower: [mean_jtc]", "suite s, case c", "no metric 'mean_jtc'", "did you mean 'mean_jct'"),
    "too few seeds": suite("lower: [mean_jct], seeds: 5", "s.yaml: cases.c", "5 are too few", "at least 30"),
    "unknown key in a case": suite("lowre: [mean_jct]", "s.yaml: cases.c.lowre", "unknown key 'lowre'", "did you mean 'lower'"),
    "unknown setting in a case": suite("lower: [mean_jct], settings: {placment: anywhere}", "suite s, case c", "unknown key", "did you mean 'placement'"),
    "missing results": Bad(CHECK, "r.json", "no such file", "simtrain bench SUITE --out r.json", {"b.json": BASELINE}),
    "missing baseline": Bad(CHECK, "b.json", "no such file", "simtrain bench SUITE --out b.json", {"r.json": BASELINE}),
    "results that are none": Bad(CHECK, "r.json", "is not JSON", "give a file that 'simtrain bench' wrote", {"r.json": "x", "b.json": BASELINE}),
    "a baseline of another suite": Bad(
        CHECK, "suite 't'", "the results are of 's'", "give the baseline of 's'", {"r.json": BASELINE, "b.json": BASELINE.replace('"s"', '"t"')}
    ),
    "a baseline of another version": Bad(
        CHECK, "simtrain 2", "the results by 1", "--update --reason", {"r.json": BASELINE, "b.json": BASELINE.replace('"simtrain": "1"', '"simtrain": "2"')}
    ),
    "an update without a reason": Bad((*CHECK, "--update"), "--update and --reason", "give both or none", "--reason 'smaller", {"r.json": BASELINE}),
    "one file for two reports": Bad(
        (*CHECK, "--junit", "a", "--markdown", "./a"), "--junit and --markdown", "both are a", "different names", {"r.json": BASELINE, "b.json": BASELINE}
    ),
    "trace without a source": Bad(
        ("run", "scheduling/fifo", "--workload", "t.yaml", "--cluster", "dgx_b200"), "t.yaml", "none given", "one of table, file and generate",
        {"t.yaml": "description: none\n"},
    ),
    "a model for a scheduler": Bad(
        ("run", "scheduling/fifo", "--workload", "gpt_tiny", "--cluster", "dgx_b200"), "in job_traces", "unknown name 'gpt_tiny'", "allowed: bursty_1k"
    ),
}  # fmt: skip

STUDY = "system: dense/megatron_lm\nworkload: gpt_tiny\ncluster: dgx_a100_40gb_ib\nsettings: {cluster.num_nodes: 1}\n"
PLAN = ("plan", "--model", "gpt_tiny", "--cluster", "dgx_a100_40gb_ib", "--global-batch-size", "8", "--set", "num_nodes=1")


def study(text: str, where: str, what: str, mend: str) -> Bad:
    """A study file ``s.yaml``."""
    return Bad(("sweep", "s.yaml", "--out", "new", "--workers", "1"), where, what, mend, {"s.yaml": STUDY + text})


STUDIES = {
    "unknown study": Bad(("sweep", "nic_dens"), "in studies", "unknown name 'nic_dens'", "did you mean 'nic_dense'"),
    "missing study": Bad(("sweep", "s.yaml"), "s.yaml", "no such file", "mend the path"),
    "unknown key of a study": study("axis: {tp: [1]}\n", "s.yaml: axis", "unknown key 'axis'", "did you mean 'axes'"),
    "study without axes": study("fidelity: fair\n", "s.yaml: axes", "required key is missing", "write 'axes: ...'"),
    "axis of no values": study("axes: {tp: 3}\n", "s.yaml: axes", "tp: an axis is a list, a range or named cases", "write [1, 2, 4]"),
    "axis of nothing": study("axes: {tpp: [1]}\n", "study s", "unknown key of MegatronLM", "did you mean 'tp'"),
    "picture over no axis": study("axes: {tp: [1]}\nplot: {kind: curves, x: pp, y: mfu}\n", "s.yaml", "plot: 'pp' is no axis", "allowed: tp"),
    "picture of no metric": study("axes: {tp: [1]}\nplot: {kind: curves, x: tp, y: mfuu}\n", "study s: plot", "no metric 'mfuu'", "did you mean 'mfu'"),
    "metric of nothing": study("axes: {tp: [1]}\nmetrics: [mfuu]\n", "study s: metrics", "unknown metric 'mfuu'", "did you mean 'mfu'"),
    "constraint on nothing": study("axes: {tp: [1]}\nconstraints: [tp <= gpus]\n", "constraints.0", "unknown name 'gpus'", "did you mean 'num_gpus'"),
    "constraint that is code": study("axes: {tp: [1]}\nconstraints: ['open(1)']\n", "constraints.0", "holds 'open(1)'", "allowed: numbers"),
    "resume of nothing": Bad(("sweep", "nic_dense", "--out", "new", "--resume"), "--out new", "holds no study to resume", "leave --resume out"),
    "sweep into a file": Bad(("sweep", "nic_dense", "--out", "taken/new"), "--out taken/new", "cannot be written", "choose another place", {"taken": ""}),
    "no workers": Bad(("sweep", "nic_dense", "--workers", "0"), "'--workers'", "greater than or equal to 1", "see 'simtrain sweep --help'"),
    "plan of a fixed dp": Bad((*PLAN, "--set", "dp=2"), "--set dp", "follows from the other degrees", "fix some of those instead"),
    "plan that divides nothing": Bad((*PLAN, "--set", "tp=3"), "no plan for gpt_tiny", "no degrees divide", "change the cluster or the batch"),
    "plan of a scheduler": Bad((*PLAN, "--system", "scheduling/fifo"), "scheduling/fifo", "cannot be planned", "choose e.g. dense/megatron_lm"),
    "explain of no result": Bad(("explain", "r.json"), "r.json", "cannot be read", "simtrain run ... --json"),
    "explain of something else": Bad(("explain", "r.json"), "r.json", "holds no result", "simtrain run ... --json", {"r.json": "[1]"}),
    "explain of a result elsewhere": Bad(("explain", "r.json", "--set", "tp=2"), "r.json", "holds its set-up", "leave out --workload", {"r.json": "{}"}),
    "report of no folder": Bad(("report", "none", "--out", "new"), "none", "cannot be read", "simtrain run ... --json"),
    "report into a file": Bad(("report", "r.json", "--out", "r.json"), "--out r.json", "is a file", "give a folder", {"r.json": "{}"}),
}  # fmt: skip

GROUPS = {"file": FILES, "set": SETTINGS, "module": MODULES, "command": COMMANDS, "suite": SUITES, "study": STUDIES}
CASES = {f"{kind}: {name}": bad for kind, group in GROUPS.items() for name, bad in group.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; importing a file there leaves no cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def lay(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("bad", CASES.values(), ids=CASES.keys())
def test_one_message_says_where_what_and_how_to_mend_it(bad: Bad, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lay(folder, bad.files)
    before, modules = contents(folder), set(sys.modules)
    monkeypatch.setattr(sys, "argv", ["simtrain", *bad.args])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, err
    assert_message(err, bad)
    assert out == ""
    assert contents(folder) == before
    for name in {name for name in sys.modules if name.startswith("simtrain_user_")} - modules:
        del sys.modules[name]


def assert_message(err: str, bad: Bad) -> None:
    assert err.startswith("simtrain: ")
    assert err.count("simtrain: ") == 1
    assert "Traceback" not in err
    assert [part for part in (bad.where, bad.what, bad.mend) if part not in err] == [], err
    assert max(len(line) for line in err.splitlines()) < 400, "longer than a user reads"


def test_there_are_many_ways_to_be_wrong() -> None:
    assert len(CASES) >= 40
    assert len({(bad.args, tuple(bad.files.items())) for bad in CASES.values()}) == len(CASES)


def test_out_of_memory_comes_with_its_table(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["simtrain", *CASES["set: out of memory"].args])
    with pytest.raises(SystemExit):
        cli.main()
    first, *rows = capsys.readouterr().err.splitlines()
    table = {row[2:30].strip(): float(row.split()[-2]) for row in rows}
    assert {"parameters", "gradients", "optimizer states", "activations"} <= table.keys()
    need = float(first.split("out of memory: ")[1].split(" GB")[0])
    assert need == pytest.approx(sum(table.values()), abs=0.005 * (len(table) + 1))  # each is rounded to 0.01
    assert need > 42.95  # 40 GiB


@pytest.mark.parametrize("name", ["file: unknown key", "set: out of memory", "module: import error", "command: no command", "command: unwritable picture"])
def test_the_program_says_the_same(name: str, folder: Path) -> None:
    bad = CASES[name]
    lay(folder, bad.files)
    before = contents(folder)
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-m", "simtrain", *bad.args], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert_message(done.stderr, bad)
    assert contents(folder) == before


def test_a_bug_in_a_users_system_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no bad input: whoever wrote the system needs the line."""
    lay(folder, {"my.py": STEP + "class My(StepSystem):\n    def build(self, workload, cluster):\n        return 1 / 0\n"})
    monkeypatch.setattr(sys, "argv", ["simtrain", "run", "my.py", *ON_TINY])
    with pytest.raises(ZeroDivisionError):
        cli.main()
