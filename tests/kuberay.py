"""The fields of KubeRay's ray.io/v1 resources as of KubeRay 1.7, as a JSON schema: no registry of packages carries its
CRDs. A field that is not known is an error here, where a Kubernetes cluster may drop it. Pod templates and services are
any object: Kubernetes has schemas of its own.

Fields: docs/reference/api.md in KubeRay's repository.
"""

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number", "minimum": 0}
COUNT: Schema = {"type": "integer", "minimum": 0}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
LIST: Schema = {"type": "array", "items": STRING}
ANY: Schema = {"type": "object"}
"""What Kubernetes itself defines."""


def struct(*required: str, **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


MANAGER = one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
DELETION = one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")

HEAD = struct(
    "template",
    template=ANY,
    headService=ANY,
    enableIngress=FLAG,
    ingressOptions=struct(
        host=STRING, path=STRING, pathType=one_of("Exact", "Prefix", "ImplementationSpecific"), tls=array(ANY)
    ),
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
)

WORKERS = struct(
    *("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=STRING,
    suspend=FLAG,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    priority={"type": "integer"},
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    template=ANY,
    scaleStrategy=struct(workersToDelete=LIST),
    numOfHosts={"type": "integer", "minimum": 1},
)

AUTOSCALER = struct(
    resources=ANY,
    image=STRING,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    securityContext=ANY,
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env=array(ANY),
    envFrom=array(ANY),
    volumeMounts=array(ANY),
    command=LIST,
    args=LIST,
)

CLUSTER = struct(
    "headGroupSpec",
    upgradeStrategy=struct(type=one_of("Recreate", "None")),
    authOptions=struct(enableK8sTokenAuth=FLAG, secretName=STRING, mode=one_of("disabled", "token")),
    suspend=FLAG,
    managedBy=MANAGER,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=STRINGS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=ANY,
    historyServerOptions=ANY,
    networkPolicy=ANY,
    tlsOptions=struct(enabled=FLAG),
    headGroupSpec=HEAD,
    rayVersion=STRING,
    workerGroupSpecs=array(WORKERS),
)

JOB = struct(
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=ANY,
    metadata=STRINGS,
    clusterSelector=STRINGS,
    submitterConfig=struct(backoffLimit=COUNT),
    managedBy=MANAGER,
    deletionStrategy=struct(
        onSuccess=struct(policy=DELETION),
        onFailure=struct(policy=DELETION),
        deletionRules=array(struct("policy", "condition", policy=DELETION, condition=ANY)),
    ),
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=STRING,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)

SERVICE = struct(
    rayClusterDeletionDelaySeconds=COUNT,
    serviceUnhealthySecondThreshold=COUNT,
    deploymentUnhealthySecondThreshold=COUNT,
    serveService=ANY,
    upgradeStrategy=struct(
        type=one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None"), clusterUpgradeOptions=ANY
    ),
    managedBy=MANAGER,
    serveConfigV2=STRING,
    rayClusterConfig=CLUSTER,
    excludeHeadPodFromServeSvc=FLAG,
    suspend=FLAG,
)

RESOURCES = {
    kind: struct(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion=one_of("ray.io/v1"),
        kind=one_of(kind),
        metadata=ANY,
        spec=spec,
    )
    for kind, spec in {"RayJob": JOB, "RayService": SERVICE}.items()
}
