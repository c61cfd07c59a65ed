{{/* One worker group: (root, name, values, sizes). */}}
{{- define "penstock.workerGroup" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $it := index . 2 -}}{{- $size := index . 3 -}}
- groupName: {{ $name }}
  replicas: {{ $size.replicas }}
  minReplicas: {{ $size.minReplicas }}
  maxReplicas: {{ $size.maxReplicas }}
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
        {{- include "penstock.selector" $root | nindent 8 }}
        penstock/kind: worker
        penstock/role: {{ $name }}
        {{- with $it.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- $annotations := deepCopy $it.podAnnotations }}
      {{- with $root.Values.interconnect.networkAnnotation }}
      {{- $_ := set $annotations "k8s.v1.cni.cncf.io/networks" . }}
      {{- end }}
      {{- with $annotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "penstock.pullSecrets" $root | nindent 6 }}
      serviceAccountName: {{ include "penstock.serviceAccountName" $root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $root.Values.shutdown.terminationGracePeriodSeconds }}
      securityContext:
        {{- include "penstock.podSecurity" $root | nindent 8 }}
      {{- include "penstock.placement" (list $root $it) | nindent 6 }}
      containers:
        - name: ray-worker
          image: {{ include "penstock.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          env:
            {{- include "penstock.env" $root | nindent 12 }}
            {{- include "penstock.keyEnv" $root.Values.access.adminKeySecret | nindent 12 }}
            {{- with $it.env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          securityContext:
            {{- include "penstock.containerSecurity" $root | nindent 12 }}
          resources:
            {{- include "penstock.nodeResources" (list $root $it.resources $it.gpus) | nindent 12 }}
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
            {{- include "penstock.scratchMounts" $root | nindent 12 }}
            {{- include "penstock.modelMount" $root | nindent 12 }}
            {{- if $root.Values.tls.existingSecret }}
            - {name: authority, mountPath: /etc/penstock/tls, readOnly: true}
            {{- end }}
      volumes:
        {{- include "penstock.scratchVolumes" $it.shmSize | nindent 8 }}
        {{- include "penstock.modelVolume" $root | nindent 8 }}
        {{- with $root.Values.tls.existingSecret }}
        - name: authority
          secret:
            secretName: {{ . }}
            items: [{key: ca.crt, path: ca.crt}]
        {{- end }}
{{- end -}}
