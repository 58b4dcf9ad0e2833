"""Containers and Kubernetes, as far as can be told without them: schemas, a linter, and that what the files
name is what the code has. Nothing here starts a container.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from deploy.accounts import REPLY_POLICY, reply_policy, worker_permissions
from deploy.nodes.rabbitmq import ADVANCED, LARGE_BINARIES
from deploy.prepare import AMQPS_PORT, CA_INSIDE, MANAGEMENT_PORT, REDIS_PORT, STORE_KEY_INSIDE
from server_worker.config import WorkerConfig
from spliteasy_cli.app import app
from spliteasy_cli.support.enrolment import is_private
from tests.deploy.test_watch import METRICS, wrong_names

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted((DEPLOY / "containers").glob("*.Dockerfile"))
COMPOSE = DEPLOY / "containers/compose.yaml"
COMPOSE_FILES = (COMPOSE, DEPLOY / "compose.yaml", DEPLOY / "watch.yaml", DEPLOY / "containers/gpu.yaml")
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = ("1.29", "1.33", "1.37")
WORKER_PORT = 9464
OPERATIONS = (ROOT / "docs/operations.md").read_text()


def resources() -> list[dict[str, Any]]:
    """All of the manifests."""
    return [each for file in MANIFESTS for each in yaml.safe_load_all(file.read_text())]


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in resources() if (each["kind"], _name(each)) == (kind, name)]
    return found


def _name(resource: dict[str, Any]) -> str:
    return str(resource.get("metadata", {}).get("name", ""))


def of_kubernetes(resource: dict[str, Any]) -> bool:
    """Return whether the resource's schema is Kubernetes' own, and not that of an operator."""
    group = resource["apiVersion"].rpartition("/")[0]
    return "." not in group or group == "networking.k8s.io"


def pods() -> Iterator[dict[str, Any]]:
    for each in resources():
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield each["spec"]["template"]


def values(tree: Any, name: str) -> Iterator[Any]:
    """Everything that stands under that name, anywhere."""
    if isinstance(tree, dict):
        yield from (value for key, value in tree.items() if key == name)
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            yield from values(each, name)


def check_command(words: list[str]) -> None:
    """Raises AssertionError where `spliteasy` knows no such command or option."""
    command: Any = get_command(app)
    rest = iter(words)
    while hasattr(command, "commands"):
        command = command.commands[next(rest)]
    assert not command.hidden, "an earlier spelling"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("-")} <= known | {"--help"}


# Schemas and a linter


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: str(file.relative_to(DEPLOY)))
def test_compose_files_fit_their_schema(file: Path) -> None:
    schema = files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(yaml.safe_load(file.read_text()), json.loads(schema.read_text()))


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_fit_the_schemas_of_kubernetes(version: str) -> None:
    checked = [each for each in resources() if of_kubernetes(each)]
    assert len(checked) >= 9
    for each in checked:
        kubernetes_validate.validate(each, version, strict=True)


def test_a_manifest_with_a_typo_would_be_found() -> None:
    wrong = one("Deployment", "worker")
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[0], strict=True)


@pytest.mark.skipif(
    not Path(sys.executable).with_name("hadolint").exists(), reason="hadolint comes for Linux on x86-64"
)
@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_dockerfiles_pass_the_linter(file: Path) -> None:
    command = [str(Path(sys.executable).with_name("hadolint")), "--failure-threshold", "warning", str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


# The broker's settings


def test_rabbitmq_is_set_alike_everywhere() -> None:
    manifest = one("RabbitmqCluster", "broker")["spec"]["rabbitmq"]
    service = yaml.safe_load((DEPLOY / "containers/compose.yaml").read_text())["services"]["rabbitmq"]
    configurations = [manifest["additionalConfig"], (DEPLOY / "containers/rabbitmq.conf").read_text()]
    for setting in ("frame_max", "raft.wal_max_size_bytes", "quorum_queue.compute_checksums"):
        assert (
            len({re.findall(rf"^{setting} = (\S+)$", each, re.MULTILINE)[0] for each in configurations}) == 1
        )
    advanced = (DEPLOY / "containers/advanced.config").read_text()
    assert re.sub("%.*\n", "", advanced) == manifest["advancedConfig"] == ADVANCED
    assert "./advanced.config:/etc/rabbitmq/advanced.config:ro" in service["volumes"]
    arguments = service["environment"]["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    assert arguments == LARGE_BINARIES
    assert manifest["envConfig"] == f'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="{arguments}"\n'


# Images


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_pinned_in_stages_and_not_for_root(file: Path) -> None:
    text = file.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["10001:10001"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"^ARG TORCH=(\S+)", text, re.MULTILINE) == re.findall(
        r"^TORCH \?= (\S+)", makefile, re.MULTILINE
    )
    (extras,) = re.findall(r'"\.\[(.*)\]"', text)
    assert f"{extras.split(',')[0]} = [" in (ROOT / "pyproject.toml").read_text()
    assert re.findall(r"^ENTRYPOINT (.*)", text, re.MULTILINE) == ['["spliteasy"]']
    check_command(json.loads(re.findall(r"^CMD (.*)", text, re.MULTILINE)[0]))


def test_what_images_are_built_from_is_there() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert all((ROOT / path).exists() for path in sent)
    assert {"spliteasy", "broker", "device_agent", "server_worker", "pyproject.toml"} <= set(sent)


def test_images_elsewhere_are_pinned() -> None:
    used = {
        image for file in COMPOSE_FILES[::2] for image in values(yaml.safe_load(file.read_text()), "image")
    }
    used |= {image for each in resources() for image in values(each, "image")}
    assert len(used) >= 5
    for image in used:
        assert re.search(r":v?\d+\.\d+\.\d+(-management)?$", image), image


# Names that the code has


def test_settings_and_commands_exist() -> None:
    code = "".join(
        path.read_text()
        for folder in ("spliteasy", "spliteasy_cli", "deploy")
        for path in (ROOT / folder).rglob("*.py")
    )
    texts = [path.read_text() for path in (*DOCKERFILES, *COMPOSE_FILES, *MANIFESTS)]
    named = {name for text in texts for name in re.findall(r"SPLITEASY_[A-Z_]+", text)}
    assert {"SPLITEASY_BROKER", "SPLITEASY_STORE", "SPLITEASY_USER"} <= named
    assert [name for name in named if f'"{name}' not in code and f"{name}=" not in code] == []
    (worker,) = one("Deployment", "worker")["spec"]["template"]["spec"]["containers"]
    check_command(worker["args"])


def test_metrics_that_scale_exist() -> None:
    triggers = one("ScaledObject", "worker")["spec"]["triggers"]
    names = {
        name for each in triggers for name in re.findall(r"spliteasy_worker_\w+", each["metadata"]["query"])
    }
    assert names
    assert names <= {metric.name for metric in METRICS}
    (ours, _) = (each["metadata"]["query"] for each in triggers)
    assert wrong_names(ours.replace('namespace="spliteasy"', "")) == []


def test_ports_and_pages_are_those_of_the_parts() -> None:
    (container,) = one("Deployment", "worker")["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "metrics", "containerPort": WORKER_PORT}]
    assert container["args"][container["args"].index("--metrics-port") + 1] == str(WORKER_PORT)
    probes = {path: probe for probe, path in _pages(container).items()}
    assert probes == {"/healthz": "livenessProbe", "/readyz": "readinessProbe"}
    assert all(f'"{page}"' in (ROOT / "spliteasy/observability/monitor.py").read_text() for page in probes)
    dockerfile = (DEPLOY / "containers/worker.Dockerfile").read_text()
    assert f"EXPOSE {WORKER_PORT}" in dockerfile
    assert f'"--metrics-port", "{WORKER_PORT}"' in dockerfile
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus/containers.yaml").read_text())["scrape_configs"]
    (found,) = scraped["dns_sd_configs"]
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert (set(found["names"]) <= set(services), found["port"]) == (True, WORKER_PORT)
    assert services["rabbitmq"]["ports"] == [
        f"{AMQPS_PORT}:{AMQPS_PORT}",
        f"127.0.0.1:{MANAGEMENT_PORT}:{MANAGEMENT_PORT}",
    ]
    assert f"{REDIS_PORT}:{REDIS_PORT}" in services["redis"]["ports"][0]
    assert services["worker"]["volumes"] == [
        f"./secrets/tls/ca.pem:{CA_INSIDE}:ro",
        f"./secrets/store.key:{STORE_KEY_INSIDE}:ro",
    ]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "secrets"]
    (volume,) = [
        each
        for each in one("Deployment", "worker")["spec"]["template"]["spec"]["volumes"]
        if each["name"] == "secrets"
    ]
    items = [item["path"] for source in volume["projected"]["sources"] for item in source["secret"]["items"]]
    assert [f"{mount['mountPath']}/{path}" for path in items] == [CA_INSIDE, STORE_KEY_INSIDE]
    assert is_private(volume["projected"]["defaultMode"], owner=0)
    opened = set(values([each for each in resources() if each["kind"] == "NetworkPolicy"], "port"))
    assert {WORKER_PORT, AMQPS_PORT, REDIS_PORT, MANAGEMENT_PORT} <= opened


def _pages(container: dict[str, Any]) -> dict[str, str]:
    return {name: container[name]["httpGet"]["path"] for name in ("livenessProbe", "readinessProbe")}


def test_there_is_time_to_drain() -> None:
    drain_s = WorkerConfig().drain_s
    pod = one("Deployment", "worker")["spec"]["template"]["spec"]
    arguments = pod["containers"][0]["args"]
    assert float(arguments[arguments.index("--drain-s") + 1]) == drain_s
    assert pod["terminationGracePeriodSeconds"] > drain_s
    assert "kill -TERM 1" in str(pod["containers"][0]["lifecycle"]["preStop"])
    worker = yaml.safe_load(COMPOSE.read_text())["services"]["worker"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > drain_s
    assert "ports" not in worker, "several of them can't have one port of the host"
    assert "container_name" not in worker, "several of them can't have one name"


def test_accounts_in_the_cluster_are_those_of_the_code() -> None:
    allowed = worker_permissions()
    may = {"configure": allowed.configure, "write": allowed.write, "read": allowed.read}
    assert one("Permission", "workers")["spec"]["permissions"] == may
    topics = one("TopicPermission", "workers")["spec"]["permissions"]
    assert topics == {"exchange": "spliteasy.uplink", "write": allowed.uplink_keys, "read": ".*"}
    policy, ours = one("Policy", "replies")["spec"], reply_policy()
    assert policy["name"] == REPLY_POLICY
    assert (policy["pattern"], policy["definition"]) == (ours["pattern"], ours["definition"])


# Whether the manifests fit each other


def test_selectors_find_what_they_are_for() -> None:
    labels = [template["metadata"]["labels"] for template in pods()] + [{"app.kubernetes.io/name": "broker"}]
    wanted = [
        selector["matchLabels"]
        for each in resources()
        for name in ("selector", "podSelector")
        for selector in values(each, name)
        if "app.kubernetes.io/name" in str(selector) and "matchLabels" in selector
    ]
    assert len(wanted) >= 8
    for each in wanted:
        assert any(each.items() <= label.items() for label in labels), each
    assert one("ScaledObject", "worker")["spec"]["scaleTargetRef"] == {"name": "worker"}
    assert "replicas" not in one("Deployment", "worker")["spec"]


def test_pods_are_nobody_and_secrets_are_named_only() -> None:
    assert not [each for each in resources() if each["kind"] == "Secret"]
    for template in pods():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            context = container["securityContext"]
            assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
    names = {name for each in resources() for name in _secrets(each)}
    assert names == {
        "spliteasy-worker",
        "spliteasy-worker-account",
        "spliteasy-ca",
        "spliteasy-store-key",
        "spliteasy-tls",
        "spliteasy-redis",
    }
    assert [name for name in names if f" {name} " not in OPERATIONS] == []


def _secrets(resource: dict[str, Any]) -> Iterator[str]:
    for key in ("secretName", "caSecretName"):
        yield from values(resource, key)
    for key in ("secretRef", "secret", "importCredentialsSecret"):
        yield from (each["name"] for each in values(resource, key) if "name" in each)


def test_what_is_listed_is_there() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
    listed = {*kustomization["resources"], "kustomization.yaml"}
    assert listed == {file.name for file in MANIFESTS}
    namespaced = [each for each in resources() if each["kind"] not in ("Namespace", "Kustomization")]
    assert {each["metadata"]["namespace"] for each in namespaced} == {kustomization["namespace"]}
    for service in yaml.safe_load(COMPOSE.read_text())["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            made_later = source.startswith(("./data/", "./secrets/"))
            assert made_later or (COMPOSE.parent / source).exists(), source


def test_workers_get_a_gpu_where_one_is_asked_for() -> None:
    compose = yaml.safe_load((DEPLOY / "containers/gpu.yaml").read_text())["services"]
    assert set(compose) <= set(yaml.safe_load(COMPOSE.read_text())["services"])
    assert compose["worker"]["environment"] == {"SPLITEASY_WORKER_DEVICE": "cuda:0"}
    overlay = yaml.safe_load((DEPLOY / "kubernetes-gpu/kustomization.yaml").read_text())
    assert [(DEPLOY / "kubernetes-gpu" / each).resolve() for each in overlay["resources"]] == [
        DEPLOY / "kubernetes"
    ]
    (patch,) = overlay["patches"]
    worker = one(patch["target"]["kind"], patch["target"]["name"])
    for operation in yaml.safe_load(patch["patch"]):
        *path, last = [part.replace("~1", "/") for part in operation["path"].split("/")[1:]]
        place: Any = worker
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if last == "-":
            place.append(operation["value"])
        else:
            place[last] = operation["value"]
    kubernetes_validate.validate(worker, KUBERNETES[-1], strict=True)
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "SPLITEASY_WORKER_DEVICE", "value": "cuda:0"} in container["env"]


def test_redis_refuses_writes_before_the_cluster_kills_it() -> None:
    """It writes its file again beside what it holds: a third of the memory stays free for that."""
    lines = (DEPLOY / "containers/redis.conf").read_text().splitlines()
    settings = dict(line.split(" ", 1) for line in lines)
    (container,) = one("StatefulSet", "redis")["spec"]["template"]["spec"]["containers"]
    limit, most = container["resources"]["limits"]["memory"], settings["maxmemory"]
    assert (limit[-2:], most[-2:]) == ("Gi", "gb")
    assert 0 < int(most[:-2]) <= int(limit[:-2]) * 2 / 3
    assert settings["maxmemory-policy"] == "noeviction"
    assert "--maxmemory 2gb" in (ROOT / "deploy/compose.yaml").read_text()
