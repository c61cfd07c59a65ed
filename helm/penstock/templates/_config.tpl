{{/* The server's configuration file: `config`, and what follows from the other values. */}}
{{- define "penstock.config" -}}
{{- $v := .Values -}}
{{- $own := dict "host" "0.0.0.0" "port" 8000 "grpc-port" 50051 "admin-host" "0.0.0.0" "admin-port" 50052 "metrics-port" 9090 -}}
{{- range $role := list "prefill" "decode" "aggregated" -}}
{{- $_ := set $own $role (int (index $v $role).replicas) -}}
{{- end -}}
{{- with $v.model.path -}}
{{- $_ := set $own "model" . -}}
{{- end -}}
{{- $_ := set $own "device" (ternary "cuda" "cpu" (gt (int $v.nodeDefaults.gpus) 0)) -}}
{{- if eq $v.ray.mode "none" -}}
{{- $_ := set $own "launcher" "local" -}}
{{- else -}}
{{- $_ := set $own "launcher" "ray" -}}
{{- $_ := set $own "ray-address" (include "penstock.rayAddress" .) -}}
{{- $_ := set $own "ray-placement" (ternary "pack" "spread" (eq $v.layout "packed")) -}}
{{- $_ := set $own "ray-start-timeout" (int $v.ray.startTimeoutSeconds) -}}
{{- end -}}
{{- if $v.gateway.clusterTokenSecret -}}
{{- $_ := set $own "cluster-token-file" "/etc/penstock/cluster/token" -}}
{{- $_ := set $own "cluster-port" 50053 -}}
{{- end -}}
{{- if $v.access.existingSecret -}}
{{- $_ := set $own "access-file" "/etc/penstock/access/access.yaml" -}}
{{- end -}}
{{- if or (not $v.access.existingSecret) (not $v.access.adminKeySecret) -}}
{{- $_ := set $own "insecure-no-keys" true -}}
{{- end -}}
{{- if $v.tls.existingSecret -}}
{{- $_ := set $own "tls-cert" "/etc/penstock/tls/tls.crt" -}}
{{- $_ := set $own "tls-key" "/etc/penstock/tls/tls.key" -}}
{{- end -}}
{{- if ne $v.fleet.mover "none" -}}
{{- $_ := set $own "kube-raycluster" (include "penstock.fullname" .) -}}
{{- $_ := set $own "controller" "on" -}}
{{- end -}}
{{- if eq $v.fleet.mover "keda" -}}
{{- $_ := set $own "kube-fleet-size" (printf "%s-fleet" (include "penstock.fullname" .)) -}}
{{- end -}}
{{- mergeOverwrite (deepCopy $v.config) $own | toYaml -}}
{{- end -}}
