{{/*
One worker group: (root, name, values, sizes). Its pods carry a digest of what they are made of: where the gateway moves
the fleet, it renews pods whose digest is another one.
*/}}
{{- define "penstock.workerGroup" -}}
{{- $size := index . 3 -}}{{- $pods := include "penstock.workerPods" (list (index . 0) (index . 1) (index . 2) "") -}}
- groupName: {{ index . 1 }}
  replicas: {{ $size.replicas }}
  minReplicas: {{ $size.minReplicas }}
  maxReplicas: {{ $size.maxReplicas }}
  {{- with $size.workersToDelete }}
  scaleStrategy: {workersToDelete: {{ toJson . }}}
  {{- end }}
  {{- include "penstock.workerPods" (list (index . 0) (index . 1) (index . 2) (sha256sum $pods)) | nindent 2 }}
{{- end -}}

{{/* What the pods of a worker group are made of: (root, name, values, digest). */}}
{{- define "penstock.workerPods" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $it := index . 2 -}}{{- $digest := index . 3 -}}
rayStartParams:
  {{- /* Every node asks Ray for half a core; where nodes are spread, a place of its role is what counts. */}}
  num-cpus: {{ ternary "1000" "1" (eq $name "packed") | quote }}
  num-gpus: {{ $it.gpus | quote }}
  {{- if ne $name "packed" }}
  resources: {{ printf "'\"{\\\"%s\\\": 1}\"'" $name }}
  {{- end }}
  node-manager-port: "6380"
  object-store-memory: "100000000"
template:
  metadata:
    labels:
      {{- include "penstock.selector" $root | nindent 6 }}
      penstock/kind: worker
      penstock/role: {{ $name }}
      {{- with $it.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- $annotations := merge (dict "penstock/template" $digest) $it.podAnnotations }}
    {{- with $root.Values.interconnect.networkAnnotation }}
    {{- $_ := set $annotations "k8s.v1.cni.cncf.io/networks" . }}
    {{- end }}
    annotations:
      {{- toYaml $annotations | nindent 6 }}
  spec:
    {{- include "penstock.pullSecrets" $root | nindent 4 }}
    serviceAccountName: {{ include "penstock.serviceAccountName" $root }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    terminationGracePeriodSeconds: {{ $root.Values.shutdown.terminationGracePeriodSeconds }}
    securityContext:
      {{- include "penstock.podSecurity" $root | nindent 6 }}
    {{- include "penstock.placement" (list $root $it) | nindent 4 }}
    containers:
      - name: ray-worker
        image: {{ include "penstock.image" $root }}
        imagePullPolicy: {{ $root.Values.image.pullPolicy }}
        env:
          {{- include "penstock.env" $root | nindent 10 }}
          {{- include "penstock.keyEnv" $root.Values.access.adminKeySecret | nindent 10 }}
          {{- with $it.env }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        securityContext:
          {{- include "penstock.containerSecurity" $root | nindent 10 }}
        resources:
          {{- include "penstock.nodeResources" (list $root $it.resources $it.gpus) | nindent 10 }}
        lifecycle:
          preStop:
            exec:
              command:
                - /bin/sh
                - -c
                - exec penstock drain --host "$POD_IP" --for-restart --force --timeout {{ $root.Values.shutdown.drainSeconds }} --admin-address {{ include "penstock.adminAddress" $root }}{{ if $root.Values.tls.existingSecret }} --tls-ca /etc/penstock/tls/ca.crt{{ end }}
        {{- /* Whether a node in it gets on is the gateway's to see: it ends one that does not, and starts another. */}}
        readinessProbe:
          tcpSocket: {port: 6380}
          periodSeconds: 5
        livenessProbe:
          tcpSocket: {port: 6380}
          initialDelaySeconds: 60
          periodSeconds: 10
          failureThreshold: 6
        volumeMounts:
          {{- include "penstock.scratchMounts" $root | nindent 10 }}
          {{- include "penstock.modelMount" $root | nindent 10 }}
          {{- if $root.Values.tls.existingSecret }}
          - {name: authority, mountPath: /etc/penstock/tls, readOnly: true}
          {{- end }}
    volumes:
      {{- include "penstock.scratchVolumes" $it.shmSize | nindent 6 }}
      {{- include "penstock.modelVolume" $root | nindent 6 }}
      {{- with $root.Values.tls.existingSecret }}
      - name: authority
        secret:
          secretName: {{ . }}
          items: [{key: ca.crt, path: ca.crt}]
      {{- end }}
{{- end -}}
