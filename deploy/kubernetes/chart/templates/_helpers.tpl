{{/* Name of the objects. */}}
{{- define "yolov5.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "yolov5.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "yolov5.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "yolov5.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "yolov5.serviceAccountName" -}}
{{- default (ternary (include "yolov5.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "yolov5.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A value as text: Helm reads each number as a float, and would write 64000000 as 6.4e+07. */}}
{{- define "yolov5.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- printf "%.0f" . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/*
Bytes that the launcher wants to find free in /dev/shm, as check_shared_memory in
server/yolov5_server/_checks.py counts them for each network: a full batch into it and out of it,
with three rows for each cell of 8, 16 and 32 pixels, and five numbers that say what can be left out.
*/}}
{{- define "yolov5.batchBytes" -}}
{{- $all := 0 -}}
{{- range .Values.networks -}}
{{- $area := mul .height .width -}}
{{- $rows := mul 3 (add (div $area 64) (div $area 256) (div $area 1024)) -}}
{{- $input := add (mul 3 $area .inputBytes) 20 -}}
{{- $output := mul $rows (add 5 .classes) .outputBytes -}}
{{- $all = add $all (mul 2 (max 1 .maxBatchSize) (add $input $output)) -}}
{{- end -}}
{{- $all -}}
{{- end -}}

{{/* Size of /dev/shm: as much again for what the steps hold beside it, and at least 256 MiB. */}}
{{- define "yolov5.sharedMemory" -}}
{{- if .Values.sharedMemory.size -}}
{{- .Values.sharedMemory.size -}}
{{- else -}}
{{- $bytes := mul 2 (include "yolov5.batchBytes" . | int64) -}}
{{- printf "%dMi" (max 256 (div (add $bytes 1048575) 1048576)) -}}
{{- end -}}
{{- end -}}

{{/* The container part of the restricted Pod Security Standard. */}}
{{- define "yolov5.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Label `job` of all that Prometheus scrapes of this release. */}}
{{- define "yolov5.job" -}}
{{ .Release.Namespace }}/{{ include "yolov5.fullname" . }}
{{- end -}}

{{/* How many servers' worth of work there is. */}}
{{- define "yolov5.saturationQuery" -}}
sum(max by (instance) (avg_over_time(yolov5_saturation{job={{ include "yolov5.job" . | quote }}}[15s])))
{{- end -}}

{{/* How fast the number of servers may change. */}}
{{- define "yolov5.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: {{ .scaleUp.stabilizationSeconds }}
  selectPolicy: Max
  policies:
    - type: Percent
      value: {{ .scaleUp.percent }}
      periodSeconds: {{ .scaleUp.periodSeconds }}
    - type: Pods
      value: {{ .scaleUp.pods }}
      periodSeconds: {{ .scaleUp.periodSeconds }}
scaleDown:
  stabilizationWindowSeconds: {{ .scaleDown.stabilizationSeconds }}
  policies:
    - type: Percent
      value: {{ .scaleDown.percent }}
      periodSeconds: {{ .scaleDown.periodSeconds }}
{{- end -}}

{{/* What the schema cannot say. */}}
{{- define "yolov5.check" -}}
{{- with .Values.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas is %v; allowed: at most autoscaling.maxReplicas, %v." .minReplicas .maxReplicas) -}}
{{- end -}}
{{- end -}}
{{- with .Values.strategy -}}
{{- if and (eq (toString .maxSurge) "0") (eq (toString .maxUnavailable) "0") -}}
{{- fail "strategy.maxSurge and strategy.maxUnavailable are both 0; allowed: one of them." -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := .Values.settings -}}
{{- if has $name (list "http_port" "grpc_port" "metrics_port" "health_port") -}}
{{- fail (printf "settings.%s is set; the ports of the container are fixed: 8000 to 8003." $name) -}}
{{- end -}}
{{- if has $name (list "drain_seconds" "model_source" "model_source_poll" "model_cache") -}}
{{- fail (printf "settings.%s is set; use drainSeconds or model instead." $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
