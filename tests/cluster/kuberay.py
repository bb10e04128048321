"""KubeRay's custom resources as far as the manifests use them, strictly: a name that is not here is an error.

Written after the types of KubeRay 1.6 (`ray-operator/apis/ray/v1/*_types.go`), whose published schemas are a hundred times this
size because each of them holds all of a pod. Pods and services in them are left to Kubernetes' own schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import kubernetes_validate
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

KUBERNETES = "1.34"


def check_kubernetes(manifest: dict[str, Any]) -> None:
    """Raises `kubernetes_validate.ValidationError` for what the API server would refuse or drop."""
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def _pod_template(value: dict[str, Any]) -> dict[str, Any]:
    check_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "template": value})
    return value


def _service(value: dict[str, Any]) -> dict[str, Any]:
    check_kubernetes({"apiVersion": "v1", "kind": "Service"} | value)
    return value


PodTemplate = Annotated[dict[str, Any], AfterValidator(_pod_template)]
Service = Annotated[dict[str, Any], AfterValidator(_service)]
Yaml = Annotated[str, AfterValidator(lambda text: yaml.safe_load(text) and text)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class HeadGroup(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: str = Field(pattern="^[a-z0-9-]+$")  # noqa: N815
    replicas: int
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815
    rayStartParams: dict[str, str]  # noqa: N815
    template: PodTemplate


class AutoscalerOptions(Strict):
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]  # noqa: N815
    idleTimeoutSeconds: int  # noqa: N815
    resources: dict[str, dict[str, str]]


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]


class RayCluster(Strict):
    rayVersion: str  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    enableInTreeAutoscaling: bool = False  # noqa: N815
    autoscalerOptions: AutoscalerOptions | None = None  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


class RayServiceSpec(Strict):
    serveConfigV2: Yaml  # noqa: N815
    serveService: Service  # noqa: N815
    rayClusterConfig: RayCluster  # noqa: N815


class RayJobSpec(Strict):
    entrypoint: str
    runtimeEnvYAML: Yaml  # noqa: N815
    shutdownAfterJobFinishes: bool  # noqa: N815
    ttlSecondsAfterFinished: int  # noqa: N815
    backoffLimit: int  # noqa: N815
    rayClusterSpec: RayCluster  # noqa: N815


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayService"]
    metadata: dict[str, str]
    spec: RayServiceSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayJob"]
    metadata: dict[str, str]
    spec: RayJobSpec
