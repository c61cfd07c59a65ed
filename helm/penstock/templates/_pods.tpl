{{- define "penstock.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "penstock.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* What Ray and Penstock need of the environment; HOME is a memory volume, the root is read-only. */}}
{{- define "penstock.env" -}}
- {name: HOME, value: /tmp}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- end -}}

{{/* KubeRay gives its own pods the token itself; the gateway's pod gets it here. */}}
{{- define "penstock.rayTokenEnv" -}}
{{- if and (ne .Values.ray.mode "none") (or .Values.ray.authSecret (and .Values.ray.authToken (eq .Values.ray.mode "kuberay"))) }}
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .Values.ray.authSecret | default (include "penstock.fullname" .) }}, key: auth_token}
{{- end }}
{{- end -}}

{{- define "penstock.keyEnv" -}}
{{- with . }}
- name: PENSTOCK_API_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: key}}
{{- end }}
{{- end -}}

{{- define "penstock.modelVolume" -}}
{{- if .Values.model.existingClaim }}
- name: model
  persistentVolumeClaim: {claimName: {{ .Values.model.existingClaim }}, readOnly: true}
{{- else if .Values.model.hostPath }}
- name: model
  hostPath: {path: {{ .Values.model.hostPath }}, type: Directory}
{{- end }}
{{- end -}}

{{- define "penstock.modelMount" -}}
{{- if or .Values.model.existingClaim .Values.model.hostPath }}
- name: model
  mountPath: {{ .Values.model.mountPath }}
  readOnly: true
  {{- with .Values.model.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Memory for Ray's sockets and for /dev/shm. */}}
{{- define "penstock.scratchVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 10Gi}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ . }}}
{{- end -}}

{{- define "penstock.scratchMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- end -}}

{{- define "penstock.gpuResource" -}}
{{- $table := dict "nvidia" "nvidia.com/gpu" "amd" "amd.com/gpu" "intel" "gpu.intel.com/i915" -}}
{{- .Values.gpu.resourceName | default (index $table .Values.gpu.vendor) -}}
{{- end -}}

{{/* Resources of a container with nodes: CPU and memory as given, GPUs and network cards on top. */}}
{{- define "penstock.nodeResources" -}}
{{- $root := index . 0 -}}{{- $resources := deepCopy (index . 1) -}}{{- $gpus := int (index . 2) -}}
{{- $more := dict -}}
{{- if and (gt $gpus 0) (not $root.Values.gpu.resourceClaims) -}}
{{- $_ := set $more (include "penstock.gpuResource" $root) (toString $gpus) -}}
{{- end -}}
{{- with $root.Values.interconnect.rdmaResource -}}
{{- $_ := set $more . (toString $root.Values.interconnect.rdmaCount) -}}
{{- end -}}
{{- range $side := list "requests" "limits" -}}
{{- $_ := set $resources $side (merge (deepCopy $more) (default dict (index $resources $side))) -}}
{{- end -}}
{{- range $claim := $root.Values.gpu.resourceClaims -}}
{{- $_ := set $resources "claims" (append (default list (index $resources "claims")) (dict "name" $claim.name)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Where pods with nodes go. */}}
{{- define "penstock.placement" -}}
{{- $root := index . 0 -}}{{- $it := index . 1 -}}
{{- $affinity := deepCopy $it.affinity -}}
{{- with $root.Values.interconnect.nvlinkTopologyKey -}}
{{- $term := dict "topologyKey" . "labelSelector" (dict "matchLabels" (dict "app.kubernetes.io/name" "penstock" "app.kubernetes.io/instance" $root.Release.Name "penstock/kind" "worker")) -}}
{{- $near := dict "podAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term))) -}}
{{- $affinity = mergeOverwrite $near $affinity -}}
{{- end -}}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $it.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $it.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $it.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $it.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $it.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $root.Values.gpu.resourceClaims }}
resourceClaims:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Ready: some node prefills, some node decodes, and the server is not about to stop. Kubernetes' gRPC probe speaks no TLS. */}}
{{- define "penstock.readyProbe" -}}
{{- if .Values.tls.existingSecret -}}
httpGet: {path: /ready, port: http, scheme: HTTPS}
{{- else -}}
grpc: {port: 50051, service: penstock.v1.InferenceService}
{{- end -}}
{{- end -}}

{{/* The probes of any gateway; `startup` is how many seconds it may take. */}}
{{- define "penstock.gatewayProbes" -}}
{{- $root := index . 0 -}}{{- $startup := int (index . 1) -}}{{- $v := $root.Values -}}
startupProbe:
  {{- include "penstock.readyProbe" $root | nindent 2 }}
  periodSeconds: {{ $v.probes.startup.periodSeconds }}
  failureThreshold: {{ div $startup $v.probes.startup.periodSeconds }}
readinessProbe:
  {{- include "penstock.readyProbe" $root | nindent 2 }}
  {{- toYaml $v.probes.readiness | nindent 2 }}
livenessProbe:
  # The process answers, whatever the queue: its event loop is what makes progress here.
  httpGet: {path: /health, port: http, scheme: {{ ternary "HTTPS" "HTTP" (not (empty $v.tls.existingSecret)) }}}
  {{- toYaml $v.probes.liveness | nindent 2 }}
{{- end -}}

{{/* Where a gateway goes that has no nodes in it. */}}
{{- define "penstock.gatewayPlacement" -}}
{{- range $key := list "affinity" "nodeSelector" "tolerations" "priorityClassName" -}}
{{- with index $.Values.gateway $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* What any gateway reads: its configuration, certificates, and the token that gateways join by. */}}
{{- define "penstock.gatewayMounts" -}}
- {name: config, mountPath: /etc/penstock/penstock.yaml, subPath: penstock.yaml, readOnly: true}
{{- if .Values.tls.existingSecret }}
- {name: tls, mountPath: /etc/penstock/tls, readOnly: true}
{{- end }}
{{- if .Values.gateway.clusterTokenSecret }}
- {name: cluster, mountPath: /etc/penstock/cluster, readOnly: true}
{{- end }}
{{- end -}}

{{- define "penstock.gatewayVolumes" -}}
- name: config
  configMap: {name: {{ include "penstock.fullname" . }}}
{{- with .Values.tls.existingSecret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.gateway.clusterTokenSecret }}
- name: cluster
  secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: token, path: token}]}
{{- end }}
{{- end -}}
