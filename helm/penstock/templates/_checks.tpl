{{/* What the schema cannot say: keys that belong together. All problems are told at once. */}}
{{- define "penstock.checks" -}}
{{- $v := .Values -}}{{- $bad := list -}}
{{- if gt (len (include "penstock.fullname" .)) 40 -}}
{{- $bad = append $bad "fullnameOverride: at most 40 characters; KubeRay adds its own to it" -}}
{{- end -}}
{{- $ps := int $v.prefill.replicas -}}{{- $ds := int $v.decode.replicas -}}{{- $as := int $v.aggregated.replicas -}}
{{- if not (or (gt $as 0) (and (gt $ps 0) (gt $ds 0))) -}}
{{- $bad = append $bad "prefill.replicas, decode.replicas: both at least 1, unless aggregated.replicas is" -}}
{{- end -}}
{{- range $role := list "prefill" "decode" "aggregated" -}}
{{- $it := index $v $role -}}
{{- if ne $v.fleet.mover "none" -}}
{{- if or (lt (int $it.replicas) (int $it.minReplicas)) (gt (int $it.replicas) (int $it.maxReplicas)) -}}
{{- $bad = append $bad (printf "%s.replicas: must be from minReplicas (%d) to maxReplicas (%d), not %d" $role (int $it.minReplicas) (int $it.maxReplicas) (int $it.replicas)) -}}
{{- end -}}
{{- end -}}
{{- if and (gt (int $it.replicas) 0) (ne (gt (int (default $v.nodeDefaults.gpus $it.gpus)) 0) (gt (int $v.nodeDefaults.gpus) 0)) -}}
{{- $bad = append $bad (printf "%s.gpus: all roles compute on GPUs or none does; set nodeDefaults.gpus" $role) -}}
{{- end -}}
{{- if and (eq $v.layout "spread") (ne $v.ray.mode "none") (gt (int $it.replicas) 0) (gt (int (default $v.nodeDefaults.gpus $it.gpus)) 1) -}}
{{- $bad = append $bad (printf "%s.gpus: at most 1 where layout is spread: a node has one GPU" $role) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.ray.mode "external") (not $v.ray.address) -}}
{{- $bad = append $bad "ray.address: needed where ray.mode is external" -}}
{{- end -}}
{{- if and (ne $v.ray.mode "external") $v.ray.address -}}
{{- $bad = append $bad "ray.address: only where ray.mode is external" -}}
{{- end -}}
{{- if and (eq $v.layout "spread") (ne $v.ray.mode "none") (has (get $v.config "kv-transport") (list "cuda_ipc" "shm")) -}}
{{- $bad = append $bad (printf "config.kv-transport: %s works within a pod only; set layout: packed" (get $v.config "kv-transport")) -}}
{{- end -}}
{{- if and (ne $v.fleet.mover "none") (or (ne $v.layout "spread") (ne $v.ray.mode "kuberay")) -}}
{{- $bad = append $bad "fleet.mover: only where layout is spread and ray.mode is kuberay: a pod is a node there" -}}
{{- end -}}
{{- if and (ne $v.fleet.mover "none") (has (get $v.config "controller") (list "off" "advise")) -}}
{{- $bad = append $bad "config.controller: must be on where fleet.mover is not none: it says how many nodes are wanted" -}}
{{- end -}}
{{- if and (eq $v.fleet.mover "keda") (not $v.keda.serverAddress) -}}
{{- $bad = append $bad "keda.serverAddress: needed where fleet.mover is keda" -}}
{{- end -}}
{{- if gt (int $v.keda.minReplicas) (int $v.keda.maxReplicas) -}}
{{- $bad = append $bad "keda.minReplicas: at most keda.maxReplicas" -}}
{{- end -}}
{{- if and (gt (int $v.gateway.replicas) 1) (not $v.gateway.clusterTokenSecret) -}}
{{- $bad = append $bad "gateway.clusterTokenSecret: needed where gateway.replicas is above 1: further gateways join by it" -}}
{{- end -}}
{{- if and (gt (int $v.gateway.replicas) 1) (eq $v.ray.mode "none") -}}
{{- $bad = append $bad "gateway.replicas: 1 where ray.mode is none: the nodes of that one pod can be reached from within it only" -}}
{{- end -}}
{{- if not (or $v.access.existingSecret $v.access.allowNoKeys) -}}
{{- $bad = append $bad "access.existingSecret: a Secret with access.yaml, or access.allowNoKeys: true if nobody is to be asked for a key" -}}
{{- end -}}
{{- if and $v.model.existingClaim $v.model.hostPath -}}
{{- $bad = append $bad "model.hostPath: not together with model.existingClaim" -}}
{{- end -}}
{{- if and $v.model.path (or $v.model.existingClaim $v.model.hostPath) (not (hasPrefix $v.model.mountPath $v.model.path)) -}}
{{- $bad = append $bad (printf "model.path: must lie below model.mountPath (%s)" $v.model.mountPath) -}}
{{- end -}}
{{- if and (or $v.model.existingClaim $v.model.hostPath) (not $v.model.path) -}}
{{- $bad = append $bad "model.path: needed where a model is mounted" -}}
{{- end -}}
{{- $grace := add $v.shutdown.drainSeconds $v.shutdown.leaseSeconds $v.shutdown.routingSeconds 15 -}}
{{- if lt (int $v.shutdown.terminationGracePeriodSeconds) (int $grace) -}}
{{- $bad = append $bad (printf "shutdown.terminationGracePeriodSeconds: at least drainSeconds + leaseSeconds + routingSeconds + 15 = %d, not %d" $grace (int $v.shutdown.terminationGracePeriodSeconds)) -}}
{{- end -}}
{{- if lt (mul $v.probes.liveness.periodSeconds $v.probes.liveness.failureThreshold) 30 -}}
{{- $bad = append $bad "probes.liveness: periodSeconds times failureThreshold must be at least 30" -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled -}}
{{- $bad = append $bad "metrics.podMonitor: not together with metrics.serviceMonitor, or all is counted twice" -}}
{{- end -}}
{{- if and (or $v.route.http.enabled $v.route.grpc.enabled) $v.tls.existingSecret -}}
{{- $bad = append $bad "route: a Gateway ends TLS itself; leave tls.existingSecret empty" -}}
{{- end -}}
{{- range $kind := list "http" "grpc" -}}
{{- if and (index $v.route $kind).enabled (not (index $v.route $kind).parentRefs) -}}
{{- $bad = append $bad (printf "route.%s.parentRefs: the Gateways that the route is for" $kind) -}}
{{- end -}}
{{- end -}}
{{- if $bad -}}
{{- fail (printf "\n  %s" (join "\n  " $bad)) -}}
{{- end -}}
{{- end -}}
