"""`minillm plan` as a person calls it: tables, JSON, scripts that a shell and YAML accept, and wrong input."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys

import pytest

from minillm.cli import main
from minillm.commands.plan import Plan
from minillm.commands.train import Train, check_effect, starting_point
from minillm.models.llama import PRESETS
from minillm.options import filled, scan, texts_of
from minillm.study.plan import model_of
from minillm.study.plan.gpus import GPUS
from minillm.tokenizers import CharacterTokenizer

SMALL = "plan --parameters 1M --vocab-size 1000 --context 64"


def output(capsys, line):
    main(line.split())
    return capsys.readouterr().out


def error(capsys, line):
    with pytest.raises(SystemExit) as raised:
        main(shlex.split(line))
    assert raised.value.code == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    return found


def parsed(words):
    """The settings that `minillm train` reads from its arguments."""
    before = starting_point(words)
    before = Train(**{field.name: getattr(before, field.name) for field in dataclasses.fields(before)})
    values = scan(Train, "train", words, before)
    given = filled(Train, "train", values, before)
    check_effect("train", values, given)
    return given


def command_in(script):
    """The words after `minillm` in the command of a script."""
    lines = [line for line in script.splitlines() if not line.strip().startswith("#")]
    start = next(i for i, line in enumerate(lines) if "minillm train" in line)
    text = lines[start].partition("minillm ")[2]
    while text.endswith("\\"):
        start += 1
        text = text[:-1] + lines[start].strip()
    return shlex.split(text.removesuffix(" &"))


def test_tables(capsys):
    text = output(capsys, "plan --parameters 125M --gpu rtx4090 --language German")
    for found in (
        "llama of 125M (124M parameters) on 2.47B tokens takes 1 x rtx4090",
        "14 blocks, 768 channels, 12 heads",
        "406.4 / N^0.34 + 410.7 / D^0.28",
        "settings were tried",
        "recomputation: a second forward",
        "of 24 GB",
        "US dollars",
        "kWh",
        "--power",
        "NVIDIA Ada architecture white paper",
        "text to collect: German",
        "--script torchrun, slurm or kubernetes",
    ):
        assert found in text, found


def test_json_has_every_number(capsys):
    found = json.loads(output(capsys, f"{SMALL} --gpu a100 --gpus 4 --json"))
    assert found["model"]["parameters"] == pytest.approx(1e6, rel=0.12)
    assert found["tokens"] == 20 * found["model"]["parameters"]
    division = found["division"]
    assert division["dp"] * division["tp"] * division["pp"] == found["gpus"] == 4
    sequences = division["dp"] * division["micro_batches"] * division["sequences_per_micro_batch"]
    assert sequences == division["batch_size"]
    assert found["step_seconds"] == pytest.approx(sum(found["settings"][0]["seconds"].values()))
    assert found["tokens_per_second"] == pytest.approx(sequences * 64 / found["step_seconds"])
    assert found["seconds"] == pytest.approx(found["tokens"] / found["tokens_per_second"] / 0.9)
    assert found["gpu_hours"] == pytest.approx(4 * found["seconds"] / 3600)
    assert found["kilowatt_hours"] == pytest.approx(found["gpu_hours"] * 0.4 * 1.1)
    assert found["cost"] == pytest.approx(1.3 * found["gpu_hours"])
    assert found["bytes_per_gpu"] == found["settings"][0]["bytes"] > 4 * found["model"]["parameters"]
    assert found["data"]["bytes"] * found["data"]["tokens_a_byte"] == pytest.approx(found["tokens"])
    assert sum(found["fallen"].values()) == found["settings_tried"] - 1
    assert parsed(found["command"][2:]).steps == found["steps"]


def test_options_replace_the_assumptions(capsys):
    plain, changed = (
        json.loads(output(capsys, f"{SMALL} --gpu a100 --json {more}"))
        for more in ("", "--price 2.6 --power 200 --pue 1.32 --uptime 0.45 --data-yield 0.01")
    )
    assert changed["seconds"] == pytest.approx(2 * plain["seconds"])
    assert changed["cost"] == pytest.approx(4 * plain["cost"])
    assert changed["kilowatt_hours"] == pytest.approx(2 * plain["kilowatt_hours"] * 0.5 * 1.2)
    assert changed["data"]["crawled"] == pytest.approx(plain["data"]["pages"] / 0.01)
    faster = json.loads(output(capsys, f"{SMALL} --gpu a100 --json --flops 1e18 --memory-bandwidth 1e18"))
    assert faster["seconds"] < plain["seconds"]


SCRIPTS = {
    "one GPU": f"{SMALL} --gpu rtx4090",
    "a machine": f"{SMALL} --gpu a100 --gpus 8",
    "two machines": f"{SMALL} --gpu a100 --gpus 16 --language de",
    "a laptop": f"{SMALL} --gpus 0",
    "7B": "plan --parameters 7B --tokens 140B --gpu h100 --gpus 64 --language de",
    "recomputed": "plan --parameters 7B --tokens 140B --gpu rtx4090 --gpus 8 --language sw",
    "GPT-2": "plan --model gpt2 --gpu l4 --gpus 2",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_valid_and_train_the_plan(capsys, name, tmp_path):
    found = json.loads(output(capsys, f"{SCRIPTS[name]} --json"))
    commands = []
    for kind in ("torchrun", "slurm"):
        script = output(capsys, f"{SCRIPTS[name]} --script {kind}")
        path = tmp_path / f"{kind}.sh"
        path.write_text(script)
        checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, ""), script
        commands.append(command_in(script))
    commands.append(command_in(output(capsys, f"{SCRIPTS[name]} --script kubernetes")))
    assert all(command == found["command"][1:] for command in commands)
    given, division, model = parsed(commands[0][1:]), found["division"], found["model"]
    for field in ("context", "layers", "heads", "channels"):
        assert getattr(given.model, field) == model[field], field
    for field in ("kv_heads", "hidden", "tied", "rope_base", "norm_eps"):
        assert getattr(given.model, field, None) == model.get(field), field
    assert given.architecture == model["family"]
    for field in ("batch_size", "micro_batches", "tp", "pp", "zero"):
        assert getattr(given, field) == division[field], field
    assert given.dp in (None, division["dp"])
    assert given.recompute == ("all" if division["recompute"] else "none")
    assert (given.dtype, given.steps) == (found["gpu"]["dtype"], found["steps"])
    assert given.device == ("cpu" if "laptop" in name else "cuda")


@pytest.mark.parametrize("name", SCRIPTS)
def test_jobs_for_kubernetes_are_yaml(capsys, name, tmp_path):
    yaml = pytest.importorskip("yaml")
    found = json.loads(output(capsys, f"{SCRIPTS[name]} --json"))
    service, job = yaml.safe_load_all(output(capsys, f"{SCRIPTS[name]} --script kubernetes"))
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    nodes = job["spec"]["completions"]
    ranks = container.get("resources", {"limits": {"nvidia.com/gpu": 1}})["limits"]["nvidia.com/gpu"]
    assert nodes * ranks == found["gpus"]
    assert service["metadata"]["name"] == pod["subdomain"] == job["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    [program] = container["args"]
    (tmp_path / "pod.sh").write_text(program)
    assert subprocess.run(["bash", "-n", str(tmp_path / "pod.sh")], check=False).returncode == 0
    stub = 'minillm() { echo "$RANK of $WORLD_SIZE at $MASTER_ADDR, $LOCAL_RANK, ${!#}" >> "$OUT"; }\n'
    for index in range(nodes) if found["gpus"] > 1 else ():
        environment = {"JOB_COMPLETION_INDEX": str(index), "OUT": str(tmp_path / "out"), "PATH": "/usr/bin:/bin"}
        subprocess.run(["bash", "-ec", stub + program], env=environment, check=True)
    if found["gpus"] > 1:
        name, last = job["metadata"]["name"], found["command"][-1]
        expected = {f"{n} of {nodes * ranks} at {name}-0.{name}, {n % ranks}, {last}" for n in range(nodes * ranks)}
        assert set((tmp_path / "out").read_text().splitlines()) == expected


def test_a_failed_rank_fails_the_pod(capsys):
    yaml = pytest.importorskip("yaml")
    _, job = yaml.safe_load_all(output(capsys, f"{SMALL} --gpu a100 --gpus 8 --script kubernetes"))
    [program] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    stub = 'minillm() { [ "$RANK" != 3 ]; }\n'
    environment = {"JOB_COMPLETION_INDEX": "0", "PATH": "/usr/bin:/bin"}
    assert subprocess.run(["bash", "-ec", stub + program], env=environment, check=False).returncode != 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("plan", "--parameters and --model are both missing; give a size such as 7B"),
        ("plan --model gpt2 --parameters 7B", "--parameters and --model are both given"),
        ("plan --parameters 7X", "--parameters is '7X'; give a number such as 125M"),
        ("plan --parameters 0", "--parameters is 0; give 100K to 2T"),
        ("plan --parameters -7B", "--parameters is -7B; give 100K to 2T"),
        ("plan --parameters 9000T", "--parameters is 9000T; give 100K to 2T"),
        ("plan --parameters 1M", "with a table of 32,000 tokens the smallest model has 2.11M"),
        ("plan --parameters 125M --tokens much", "--tokens is 'much'; give a number"),
        ("plan --parameters 125M --tokens 7", "--tokens is 7, less than one sequence of 2048"),
        ("plan --parameters 125M --tokens 1e30", "--tokens is 1e30; give 1 to 10,000T"),
        ("plan --parameters 125M --gpus -1", "--gpus is -1; give 0 or more"),
        ("plan --parameters 125M --gpus 12", "--gpus is 12, which does not fill machines of 8"),
        ("plan --parameters 125M --gpus 99999", "--gpus is 99,999; give 16,384 at most"),
        ("plan --parameters 125M --gpu cpu --gpus 2", "leave --gpus out"),
        ("plan --parameters 125M --gpu h10", "no GPU 'h10' in the table; did you mean 'h100'"),
        ("plan --parameters 125M --gpus-per-node 0", "--gpus-per-node is 0; give 1 or more"),
        ("plan --parameters 125M --language klingon", "--language is 'klingon'"),
        ("plan --parameters 125M --context 0", "--context is 0; give 1 or more"),
        ("plan --parameters 125M --context 2000000000", "--context is 2,000,000,000; give 1,048,576 at most"),
        ("plan --model gpt2 --context 2048", "gpt2 has 1024 positions; give fewer"),
        ("plan --model gpt2 --vocab-size 7", "--vocab-size does nothing here, as gpt2 has its own"),
        ("plan --model bert-base-uncased", "cannot be divided; give a GPT2 or a Llama"),
        ("plan --parameters 125M --vocab-size 1", "--vocab-size is 1; give 2 to"),
        ("plan --parameters 125M --batch-size 0", "--batch-size is 0; give 1 to"),
        ("plan --parameters 125M --gpus 4096 --batch-size 7", "--batch-size is 7, which no division of 4096 GPUs"),
        ("plan --parameters 125M --uptime 1.5", "--uptime is 1.5; give a number above 0, 1 at most"),
        ("plan --parameters 125M --products 0", "--products is 0.0; give a number above 0, 1 at most"),
        ("plan --parameters 125M --pue 0.9", "--pue is 0.9; give 1 or more"),
        ("plan --parameters 125M --price -1", "--price is -1.0; give 0 or more"),
        ("plan --parameters 125M --data-yield nan", "--data-yield is nan; give a number above 0"),
        ("plan --parameters 125M --memory 1e6", "does not fit on 1 x h100"),
        ("plan --parameters 2T --gpu rtx4090 --gpus 4", "nor would 16,384 do; give fewer --parameters"),
        ("plan --model /nowhere", "plan: /nowhere is no preset"),
        ("plan --parameters 3B --gpus 0", "does not fit on this computer: it needs"),
        ("plan --parameters 125M --text x", "--tokenizer and --text belong together"),
        ("plan --parameters 125M --script slurm --json", "are two things to print; give one"),
        ("plan --parameters 125M --script pbs", "choose one of: torchrun, slurm, kubernetes"),
        ("plan --parameters 125M --mfu 0.4", "did you mean --products?"),
        ("plan 7B", "'7B' is more than was expected"),
    ],
)
def test_wrong_input(capsys, line, sentence):
    assert sentence in error(capsys, line)


def test_a_batch_that_pipelines_alone_can_divide(capsys):
    found = json.loads(output(capsys, f"{SMALL} --gpus 2 --gpu l4 --batch-size 7 --json"))
    assert (found["division"]["dp"], found["division"]["batch_size"]) == (1, 7)


def test_every_gpu_plans(capsys):
    for name, gpu in GPUS.items():
        found = json.loads(output(capsys, f"{SMALL} --gpu {name} --json"))
        assert found["gpu"]["name"] == name
        assert 0 < found["utilisation"] < gpu.products
        assert found["seconds"] > 0
    assert output(capsys, f"{SMALL} --gpu NVIDIA-H100 --json") == output(capsys, f"{SMALL} --gpu h100 --json")
    assert all(f"{name}" in texts_of(Plan)[("gpu",)] for name in GPUS)


def test_a_tokenizer_of_ones_own(capsys, tmp_path):
    (tmp_path / "text.txt").write_text("ein Satz und noch ein Satz " * 9)
    CharacterTokenizer.train("ein Satz und noch ein Satz ").save(tmp_path / "tokenizer")
    line = f"{SMALL} --json --language de --tokenizer {tmp_path}/tokenizer --text {tmp_path}/text.txt"
    found = json.loads(output(capsys, line))
    assert found["data"]["tokens_a_byte"] == 1
    assert found["data"]["bytes"] == found["tokens"]
    assert "measured" in found["data"]["source"]


def test_the_script_trains(capsys, tmp_path, monkeypatch):
    """The commands of the script's comments, and then the script, as they stand."""
    monkeypatch.chdir(tmp_path)
    script = output(capsys, f"{SMALL} --gpus 0 --tokens 20K --batch-size 8 --script torchrun".replace("1M", "300K"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "en-text").write_text("the model reads a text, and then it writes what it has read; " * 300)
    for line in script.splitlines():
        if line.startswith("#   minillm"):
            main(shlex.split(line)[2:])
    (tmp_path / "job.sh").write_text(f'minillm() {{ {sys.executable} -m minillm "$@" --no-progress; }}\n{script}')
    done = subprocess.run(["bash", "job.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "runs" / "llama-300k-en" / "config.json").read_text())
    lines = (tmp_path / "runs" / "llama-300k-en" / "metrics.jsonl").read_text().splitlines()
    losses = [found["val_loss"] for line in lines if "val_loss" in (found := json.loads(line))]
    assert (config["architecture"], config["steps"]) == ("llama", 39)
    assert losses[-1] < losses[0]


def test_a_model_by_its_name():
    kind, config, name, context = model_of(None, "llama-2-7b", 32000, None)
    assert (kind.__name__, config, name, context) == ("Llama", PRESETS["llama-2-7b"], "llama-2-7b", 4096)
