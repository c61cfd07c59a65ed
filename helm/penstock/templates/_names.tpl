{{- define "penstock.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "penstock.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "penstock.selector" . }}
{{- end -}}

{{/* What every pod of the release has, and nothing else has. */}}
{{- define "penstock.selector" -}}
app.kubernetes.io/name: penstock
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "penstock.serviceAccountName" -}}
{{- default (ternary (include "penstock.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "penstock.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "penstock.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "penstock.rayAddress" -}}
{{- if eq .Values.ray.mode "external" -}}{{ .Values.ray.address }}{{- else -}}{{ include "penstock.fullname" . }}-head-svc:6379{{- end -}}
{{- end -}}

{{/* Further gateways: how many beside the first. */}}
{{- define "penstock.numFurther" -}}{{ sub (int .Values.gateway.replicas) 1 }}{{- end -}}

{{/* What an operator's command in the gateway's pod says besides; its key stands in the environment there. */}}
{{- define "penstock.operatorFlags" -}}
{{- if .Values.tls.existingSecret }} --admin-address {{ include "penstock.adminAddress" . }} --tls-ca /etc/penstock/tls/ca.crt{{ end -}}
{{- end -}}

{{- define "penstock.adminAddress" -}}{{ include "penstock.fullname" . }}-admin:50052{{- end -}}

{{/* The roles that have nodes, with their values over nodeDefaults. */}}
{{- define "penstock.role" -}}
{{- $root := index . 0 -}}{{- $own := index $root.Values (index . 1) -}}
{{- mergeOverwrite (deepCopy $root.Values.nodeDefaults) (deepCopy $own) | toJson -}}
{{- end -}}
