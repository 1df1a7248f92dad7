"""The real command in processes of its own: the main job, an interruption, and mistakes."""

from __future__ import annotations

import bz2
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import PEOPLE
from tests.e2e.launch import environment, forked_ranks, real_trelm, torchrun, trelm
from tests.forked import Command

SETTINGS = """
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}
optimizer: {warmup_steps: 2}
cka: {max_token_share: 1.0}
routing: {enabled: true, refresh_every: 1, sample_fraction: 1.0}
trainer:
  {max_steps: 8, global_batch_size: 16, micro_batch_tokens: 64, precision: fp32, log_every: 2, checkpoint_every: 4}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "run.yaml"
    path.write_text(SETTINGS)
    return path


@pytest.mark.slow
def test_the_main_job(tiny_corpus: Path, settings: Path, tmp_path: Path) -> None:
    """prepare, verify, pretrain under torchrun, export, evaluate: all of them really started."""
    from mlflow import MlflowClient
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    data, run, model = tmp_path / "data", tmp_path / "run", tmp_path / "model"
    source = ("--source", tiny_corpus / "corpus.jsonl", "--wikidata5m", tiny_corpus / "wikidata5m")
    sizes = ("--tokenizer", "train", "--max-length", 32, "--vocab-size", 300)
    prepared = real_trelm("prepare", *source, *sizes, "--out", data)
    assert prepared.returncode == 0, prepared.stderr
    assert "400  sequences" in prepared.stdout
    assert "sound" in real_trelm("verify", data).stdout

    command = torchrun(2, "pretrain", "--config", settings, "--data", data, "--out", run)
    trained = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert trained.returncode == 0, trained.stderr
    assert "pretrain: 8/8" in trained.stderr
    assert json.loads((run / "checkpoints" / "latest.json").read_text())["step"] == 8

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tracked,) = client.search_runs([client.get_experiment_by_name("trelm").experiment_id])
    assert tracked.info.status == "FINISHED"
    manifest = json.loads((run / "checkpoints" / "step-00000008" / "manifest.json").read_text())
    assert tracked.data.tags["trelm.run_key"] == manifest["mlflow"]
    params = tracked.data.params
    assert (params["trainer.global_batch_size"], params["world_size"], params["zero_stage"]) == ("16", "2", "1")
    assert params["dataset.fingerprint"] == json.loads((data / "manifest.json").read_text())["fingerprint"]
    assert params["versions.deepspeed"] == version("deepspeed")
    assert int(params["knowledge.memory entities"]) > 0
    assert int(params["knowledge.bytes of memory on this rank"]) > 0
    assert "memory entities" in trained.stderr
    for name in ("mlm_loss", "cka_loss", "cka_accuracy", "memory_lambda", "memory_rows", "injected_per_sequence"):
        assert client.get_metric_history(tracked.info.run_id, name), name
    for name in ("path_neurons", "path_concentration_layer_00", "path_turnover", "attribution_time_share"):
        assert client.get_metric_history(tracked.info.run_id, name), name
    points = client.get_metric_history(tracked.info.run_id, "loss")
    assert [point.step for point in points] == [2, 4, 6, 8]
    assert {item.path for item in client.list_artifacts(tracked.info.run_id)} == {
        "config.yaml",
        "ds_config.json",
        "loss.png",
    }
    assert len(client.get_metric_history(tracked.info.run_id, "tokens_per_s")) == 4

    exported = real_trelm("export", run, model)
    assert exported.returncode == 0, exported.stderr
    AutoModelForMaskedLM.from_pretrained(model)
    assert len(AutoTokenizer.from_pretrained(model)) <= 300

    asked = ("--prompt", f"{PEOPLE[0]} lives in [MASK].", "--answer", "City03", "--out", tmp_path / "neurons.json")
    for source, command in ((run, real_trelm), (model, trelm)):
        explained = command("neurons", source, *asked)
        assert explained.returncode == 0, explained.stderr
        assert len(json.loads((tmp_path / "neurons.json").read_text())["neurons"]) == 20
        assert ("on_path" in (tmp_path / "neurons.json").read_text()) == (source == run)
        assert (tmp_path / "neurons.png").is_file()

    probes = tmp_path / "lama"
    (probes / "TREx").mkdir(parents=True)
    (probes / "relations.jsonl").write_text('{"relation": "P551", "template": "[X] lives in [Y] .", "label": "home"}\n')
    people = [{"sub_label": name, "sub_uri": f"Q{number}"} for number, name in enumerate(PEOPLE[:5], 1)]
    facts = [{**person, "obj_label": "river", "tier": "often"} for person in people]
    (probes / "TREx" / "P551.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    options = ("--common-with", model, "--multi-token", "mean-log-prob", "--uhn-model", model, "--dataset", data)
    probing = ("evaluate", "lama", "--model", model, "--data", probes, "--out", tmp_path / "lama.json", *options)
    probed = real_trelm(*probing, "--batch-size", "3", "--device", "cpu")
    assert probed.returncode == 0, probed.stderr
    result = json.loads((tmp_path / "lama.json").read_text())["parts"]["trex"]
    assert result["n_facts"] == 5
    assert result["majority_baseline"]["p_at_1"] == 1.0
    assert set(result["relations"]) == {"P551"}
    assert (tmp_path / "lama.predictions.jsonl.gz").is_file()
    assert sum(score["n_facts"] for score in result["groups"]["subject"].values()) == 5
    assert result["uhn"]["filters"] == ["string_match", "person_name"]
    assert "P551" in probed.stdout
    assert (tmp_path / "lama.png").is_file()


def test_parts_of_a_dataset(tiny_corpus: Path, tmp_path: Path) -> None:
    command = ("prepare", "--source", tiny_corpus / "corpus.jsonl", "--wikidata5m", tiny_corpus / "wikidata5m")
    command += ("--tokenizer", "train", "--max-length", 32, "--vocab-size", 300, "--out", tmp_path / "data")
    assert "part 2/3 is done" in trelm(*command, "--part", "2/3", "--workers", 1).stdout
    asked = trelm(*command, "--missing-parts", 3)
    assert (asked.returncode, asked.stdout) == (0, "1,3\n")  # what `sbatch --array` takes
    assert "run --part 1/3, 3/3, then --merge" in refused(trelm(*command, "--merge"))


@pytest.mark.slow
def test_text_is_held_out_and_scored(tiny_corpus: Path, tiny_dataset: Path, settings: Path, tmp_path: Path) -> None:
    """With both schedules, from settings as people write them; evaluated at the end too, where no multiple is."""
    command = ("prepare", "--source", tiny_corpus / "corpus.jsonl", "--wikidata5m", tiny_corpus / "wikidata5m")
    command += ("--tokenizer", "train", "--max-length", 32, "--vocab-size", 300, "--workers", 1)
    prepared = trelm(*command, "--held-out", 0.2, "--out", tmp_path / "data")
    assert "documents held out" in prepared.stdout, prepared.stderr
    schedules = tmp_path / "schedules.yaml"
    schedules.write_text("masking: {probability: [0.4, 0.2]}\noptimizer: {schedule: wsd, decay_steps: 2}\n")
    common = ("pretrain", "--config", settings, "--config", schedules, "--tracking.enabled", "false")
    common += ("--trainer.max_steps", 6, "--trainer.eval_every", 4)
    trained = forked_ranks(2, *common, "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    assert "held-out mlm" in trained.stderr
    points = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points if "eval_mlm_loss" in point] == [4, 6]
    assert [round(point["mask_rate"], 6) for point in points] == [0.36, 0.28, 0.2]
    assert [point["lr"] for point in points] == pytest.approx([5e-5, 1e-4, 1e-4 * (1 - 0.5**0.5)])
    without = trelm(*common, "--data", tiny_dataset, "--out", tmp_path / "without")
    assert "has no held-out text; make it with `trelm prepare --held-out 0.005`" in refused(without)


@pytest.mark.slow
def test_an_interrupted_run_continues_where_it_was(tiny_dataset: Path, settings: Path, tmp_path: Path) -> None:
    """SIGINT, then the same command again: the same losses as a run that nothing disturbed."""
    common = ("pretrain", "--config", settings, "--data", tiny_dataset, "--tracking.enabled", "false")
    long = ("--trainer.max_steps", 60, "--trainer.checkpoint_every", 1000, "--trainer.log_every", 1)
    whole = trelm(*common, *long, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr

    command = (*common, *long, "--out", tmp_path / "run")
    process = Command([*map(str, command)])
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and '"step": 5,' in metrics.read_text()) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    stopped = json.loads((tmp_path / "run" / "checkpoints" / "latest.json").read_text())["step"]
    assert 5 <= stopped < 60
    assert f"stopped by signal 2; the same command continues: step {stopped}" in errors

    again = trelm(*command)
    assert again.returncode == 0, again.stderr
    assert f"at step {stopped}" in again.stderr
    read = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "run")]
    losses = [[(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines] for lines in read]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_profile_of_two_ranks_survives_a_kill_and_a_restart(
    tiny_dataset: Path, settings: Path, tmp_path: Path
) -> None:
    """Nothing of it is there after a kill within the window, and once in MLflow although it was recorded twice."""
    from mlflow import MlflowClient

    run = tmp_path / "run"
    common = ("pretrain", "--config", settings, "--data", tiny_dataset, "--out", run, "--trainer.profile_steps", "6:8")
    assert trelm(*common, TRELM_KILL_AT="step-updated:7").returncode != 0
    assert json.loads((run / "checkpoints" / "latest.json").read_text())["step"] == 4
    assert not (run / "profile").exists()
    for _ in range(2):
        trained = forked_ranks(2, *common)
        assert trained.returncode == 0, trained.stderr
        assert "at step 4" in trained.stderr
        assert f"profile: steps 6 to 7 are in {run}/profile/rank-0.steps-6-8.json.gz, and likewise" in trained.stderr
        assert " tokens/s, " in trained.stderr
        assert " per device" in trained.stderr
        shutil.rmtree(run / "checkpoints" / "step-00000008")
    names = [f"profile/rank-{rank}.steps-6-8.json.gz" for rank in (0, 1)]
    assert sorted(str(path.relative_to(run)) for path in (run / "profile").iterdir()) == names
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tracked,) = client.search_runs([client.get_experiment_by_name("trelm").experiment_id])
    assert [item.path for item in client.list_artifacts(tracked.info.run_id, "profile")] == names
    for name in ("tokens_per_s_per_device", "tflops_per_device", "data_wait_share", "peak_resident_gb"):
        points = client.get_metric_history(tracked.info.run_id, name)
        assert [point.step for point in points] == [2, 4, 6, 8], name


@pytest.mark.slow
def test_a_run_whose_mlflow_server_is_down_trains_and_is_sent_later(
    tiny_dataset: Path, settings: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    run, store = tmp_path / "run", f"sqlite:///{tmp_path / 'later.db'}"
    common = ("--config", settings, "--data", tiny_dataset, "--out", run)
    with socket.socket() as reserved:  # bound, but nobody listens
        reserved.bind(("127.0.0.1", 0))
        uri = f"http://me:geheim@127.0.0.1:{reserved.getsockname()[1]}"
        changes = ("--tracking.uri", uri, "--tracking.system_metrics_every_s", "0.1")
        trained = trelm("pretrain", *common, *changes)
    assert trained.returncode == 0, trained.stderr
    assert "done: step 8" in trained.stderr
    assert f"entries wait for MLflow (http://...@127.0.0.1:{uri.rsplit(':', 1)[1]} does not answer)" in trained.stderr
    assert "geheim" not in trained.stderr + trained.stdout
    for file in run.iterdir():
        assert file.is_dir() or b"geheim" not in file.read_bytes(), file

    for number in (9, 0):  # run, two files, four log points, loss curve, status; then nothing
        synced = trelm("sync", run, "--uri", store)
        assert synced.returncode == 0, synced.stderr
        assert f"{run}: {number} entries sent to {store}" in synced.stdout
    client = MlflowClient(store)
    (tracked,) = client.search_runs([client.get_experiment_by_name("trelm").experiment_id])
    assert tracked.info.status == "FINISHED"
    assert "geheim" not in str(tracked.data)
    assert [point.step for point in client.get_metric_history(tracked.info.run_id, "loss")] == [2, 4, 6, 8]
    assert client.get_metric_history(tracked.info.run_id, "system/node-0/cpu_percent")
    assert "system/node-0/cpu_percent" in (run / "metrics.jsonl").read_text()
    names = {item.path for item in client.list_artifacts(tracked.info.run_id)}
    assert names == {"config.yaml", "ds_config.json", "loss.png"}
    assert "holds no mlflow_spool.jsonl" in refused(trelm("sync", tmp_path))


@pytest.mark.slow
def test_without_tracking_mlflow_is_not_needed(tiny_dataset: Path, settings: Path, tmp_path: Path) -> None:
    """DeepSpeed imports it where it can (and runs without), so that it is loaded says nothing; here it cannot be."""
    (tmp_path / "mlflow.py").write_text("raise ImportError('asked for')\n")
    common = ("pretrain", "--config", settings, "--data", tiny_dataset, "--out", tmp_path / "run")
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    result = real_trelm(*common, "--tracking.enabled", "false", PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "run" / "mlflow_spool.jsonl").exists()
    assert "mlflow.db: asked for" in refused(real_trelm(*common, PYTHONPATH=path))


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a user's mistake is answered with."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("trelm: error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    return lines[0]


SUB_COMMANDS = (
    "prepare verify pretrain submit status checkpoints sync export convert evaluate compare importance strategies "
    "neurons vectors tune"
)


@pytest.mark.parametrize("command", SUB_COMMANDS.split())
def test_every_sub_command_starts(command: str) -> None:
    """Most tests run them in forked processes, where all modules are imported already."""
    started = real_trelm(command, "--help")
    assert started.returncode == 0, started.stderr
    assert started.stdout.startswith(f"usage: trelm {command}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--config", "nowhere.yaml"], "--config: nowhere.yaml does not exist"),
        (["pretrain", "--data", "x"], "--out: required"),
        (["pretrain", "--data", "nowhere", "--out", "run"], "nowhere is no dataset"),
        (["pretrain", "--trainer.max_stepz", "3"], "--trainer.max_stepz"),
        (["verify", "nowhere"], "nowhere is no dataset"),
        (["verify", "s3://bucket/wiki"], "s3://bucket/wiki: verify works on folders"),
        (["pretrain", "--data", "nosuch://bucket", "--out", "run"], "cannot open nosuch://bucket: Protocol not known"),
        (["export", "nowhere", "out"], "nowhere: neither a run folder with checkpoints nor a checkpoint"),
        (["evaluate", "lama", "--model", "nowhere", "--data", "nowhere"], "nowhere"),
        (
            ["prepare", "--source", "nowhere", "--wikidata5m", "x", "--tokenizer", "train", "--out", "o"],
            "does not exist",
        ),
        (
            ["prepare", "--source=x", "--wikidata5m=x", "--tokenizer=train", "--out=o", "--merge", "--missing-parts=2"],
            "--missing-parts: takes the number of parts",
        ),
        (["prepare", "--source", "x"], "the following arguments are required"),
        (["prepare", "--max-length", "many"], "--max-length: invalid int value: 'many'"),
        (["export", "--fast"], "required: RUN|CHECKPOINT, OUT"),
        (["importance", "nowhere", "--model", "m"], "nowhere is no dataset"),
        (["importance", "nowhere", "--model", "m", "--part", "3/2"], "--part: give i/n"),
        (["strategies", "nowhere"], "nowhere is no dataset"),
        (["neurons", "nowhere", "--prompt", "[MASK]", "--answer", "x"], "nowhere: neither a run folder"),
        (["neurons", "x", "--prompt", "[MASK]", "--answer", "x", "--top", "0"], "--top: must be at least 1"),
        (
            ["neurons", "x", "--prompt", "[MASK]", "--answer", "x", "--out", "a"],
            "--out: give a file such as neurons.json",
        ),
        (["neurons", "x", "--prompt", "[MASK]", "--answer", "x", "--out", "/proc/n.json"], "--out: /proc cannot be"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = trelm(*arguments, PWD=str(tmp_path))
    assert message in refused(result)


def test_bad_input_is_one_line_and_exit_code_2(tiny_corpus: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """What the command line makes of broken files; the messages of every kind are tested in their rooms."""
    graph = Path(shutil.copytree(tiny_corpus / "wikidata5m", tmp_path / "graph"))
    dump = tmp_path / "dump.xml.bz2"
    pages = "".join(f"<page><title>{n * 2654435761 % 2**32}</title></page>" for n in range(90_000))
    dump.write_bytes(bz2.compress(f"<mediawiki>{pages}</mediawiki>".encode())[:-1000])
    common = ("prepare", "--tokenizer", "train", "--out", tmp_path / "out")
    truncated = trelm(*common, "--source", dump, "--wikidata5m", graph)
    assert f"{dump}: damaged or truncated file" in refused(truncated)

    with (graph / "wikidata5m_all_triplet.txt").open("a") as stream:
        stream.write("Q1\tP551\n")
    malformed = trelm(*common, "--source", tiny_corpus / "corpus.jsonl", "--wikidata5m", graph)
    assert "wikidata5m_all_triplet.txt:41: expected head<TAB>relation<TAB>tail" in refused(malformed)
    assert not (tmp_path / "out").exists()

    settings = tmp_path / "run.yaml"
    for text, message in (
        ("trainer:\n  steps: 3\n", "2: unknown setting"),
        ("model:\n  hidden_size: big\n", "2: model"),
    ):
        settings.write_text(text)
        assert f"{settings}:{message}" in refused(trelm("pretrain", "--config", settings))

    data = Path(shutil.copytree(tiny_dataset, tmp_path / "data"))
    vocabulary = (data / "tokenizer" / "vocab.txt").read_text().splitlines()
    shutil.rmtree(data / "tokenizer")
    (data / "tokenizer").mkdir()
    (data / "tokenizer" / "vocab.txt").write_text("\n".join([*vocabulary[:5], *reversed(vocabulary[5:])]) + "\n")
    mismatch = trelm("pretrain", "--data", data, "--out", tmp_path / "run")
    assert "not the tokenizer that made this dataset" in refused(mismatch)


def test_print_config_shows_what_would_run(settings: Path) -> None:
    import yaml

    result = trelm("pretrain", "--config", settings, "--print-config", "--optimizer.lr", "5e-4")
    assert result.returncode == 0, result.stderr
    tree = yaml.safe_load(result.stdout)
    assert (tree["optimizer"]["lr"], tree["trainer"]["max_steps"], tree["model"]["hidden_size"]) == (5e-4, 8, 32)


def test_verify_names_the_broken_shard(tiny_dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "data"))
    shard = copy / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    result = trelm("verify", copy)
    assert result.returncode == 1
    assert f"{shard}: its content does not match" in result.stderr

    repaired = trelm("verify", "--repair", copy)
    assert repaired.returncode == 0, repaired.stderr
    assert "shard-000000.tar: block at byte 0 dropped, 256 sequences (its checksum does not match)" in repaired.stdout
    assert "sound; 1 shard(s), 144 sequences" in repaired.stdout
    assert trelm("verify", copy).returncode == 0


def test_two_ranks_report_a_mistake_once(tiny_dataset: Path, settings: Path, tmp_path: Path) -> None:
    command = ("pretrain", "--config", settings, "--data", tiny_dataset, "--out", tmp_path / "run")
    result = forked_ranks(2, *command, "--trainer.global_batch_size", "13")
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("trelm: error: ")]
    assert lines == ["trelm: error: trainer.global_batch_size: 13 is no multiple of 2 ranks; change one of the two"]
    assert not (tmp_path / "run").exists()


def test_two_ranks_report_damage_once(tiny_dataset: Path, settings: Path, tmp_path: Path) -> None:
    """Found by worker processes, each for itself."""
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "data"))
    shard = copy / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    command = ("pretrain", "--config", settings, "--data", copy, "--out", tmp_path / "run")
    result = forked_ranks(2, *command, "--tracking.enabled", "false")
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("trelm: error: ")]
    assert f"{copy}/shard-000000.tar: damaged at byte 0 (its checksum does not match)" in line
    assert "256 of 400 samples" in line


def test_a_missing_shard_is_found_before_training(tiny_dataset: Path, settings: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "data"))
    (copy / "shard-000000.tar").unlink()
    message = refused(trelm("pretrain", "--config", settings, "--data", copy, "--out", tmp_path / "run"))
    assert "shard-000000.tar missing, 400 of 400 samples (100.00%), more than loader.max_corrupted 0.001" in message


def test_a_store_that_cannot_be_opened_is_one_line(tiny_dataset: Path, settings: Path, tmp_path: Path) -> None:
    common = ("pretrain", "--config", settings, "--data", tiny_dataset, "--out", tmp_path / "run")
    message = refused(trelm(*common, MLFLOW_TRACKING_URI="sqlite:////proc/nowhere/mlflow.db"))
    assert "tracking.uri: cannot use sqlite:////proc/nowhere/mlflow.db" in message
    message = refused(trelm(*common, "--tracking.uri", "http://me:geheim@host:port"))
    assert "tracking.uri: cannot use http://...@host:port" in message
    shown = trelm(*common, "--tracking.uri", "http://me:geheim@host:5000", "--print-config")
    assert "uri: http://...@host:5000" in shown.stdout
    for mistake in (("--tracking.url", "http://me:geheim@host"), ("--tracking.enabled", "http://me:geheim@host")):
        assert "geheim" not in refused(trelm(*common, *mistake))
