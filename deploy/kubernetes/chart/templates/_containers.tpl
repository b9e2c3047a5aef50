{{- define "yolov5.server" -}}
image: {{ include "yolov5.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.command }}
command: {{ toJson . }}
{{- end }}
{{- with .Values.args }}
args: {{ toJson . }}
{{- end }}
env:
  - name: YOLOV5_DRAIN_SECONDS
    value: {{ .Values.drainSeconds | quote }}
  {{- if .Values.model.source }}
  - name: YOLOV5_MODEL_SOURCE
    value: {{ .Values.model.source | quote }}
  - name: YOLOV5_MODEL_SOURCE_POLL
    value: {{ .Values.model.pollSeconds | quote }}
  - name: YOLOV5_MODEL_CACHE
    value: /var/cache/yolov5
  {{- end }}
  {{- range $name, $value := .Values.settings }}
  - name: YOLOV5_{{ upper $name }}
    value: {{ include "yolov5.text" $value | quote }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or .Values.extraEnvFrom (and .Values.model.source .Values.model.credentialsSecret) }}
envFrom:
  {{- if and .Values.model.source .Values.model.credentialsSecret }}
  - secretRef: { name: {{ .Values.model.credentialsSecret }} }
  {{- end }}
  {{- with .Values.extraEnvFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
ports:
  - { name: http, containerPort: 8000, protocol: TCP }
  - { name: grpc, containerPort: 8001, protocol: TCP }
  - { name: metrics, containerPort: 8002, protocol: TCP }
  - { name: health, containerPort: 8003, protocol: TCP }
# Triton's own health stays good when a process of a model has died; the launcher's does not.
startupProbe:
  httpGet: { path: /ready, port: health }
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ max 1 (div .Values.startupSeconds 5) }}
readinessProbe:
  httpGet: { path: /ready, port: health }
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
# The launcher restarts Triton by itself. This is for a launcher that no longer can.
livenessProbe:
  httpGet: { path: /live, port: health }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
resources:
  {{- $resources := deepCopy .Values.resources }}
  {{- if .Values.gpu.count }}
  {{- $gpu := dict .Values.gpu.resource .Values.gpu.count }}
  {{- $resources = merge (dict "limits" $gpu "requests" $gpu) $resources }}
  {{- end }}
  {{- toYaml $resources | nindent 2 }}
securityContext:
  {{- include "yolov5.containerSecurity" . | nindent 2 }}
volumeMounts:
  - { name: shared-memory, mountPath: /dev/shm }
  - { name: tmp, mountPath: /tmp }
  {{- if .Values.model.source }}
  - { name: model-cache, mountPath: /var/cache/yolov5 }
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "yolov5.rest" -}}
image: {{ default (include "yolov5.image" .) .Values.rest.image }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: {{ toJson .Values.rest.command }}
args:
  - --server=127.0.0.1:8001
  - --health=http://127.0.0.1:8003
  - --host={{ .Values.settings.host }}
  - --port=8080
  {{- if .Values.rest.apiKeysSecret }}
  - --api-keys=/etc/yolov5/api-keys
  {{- end }}
  {{- range .Values.rest.args }}
  - {{ . | quote }}
  {{- end }}
ports:
  - { name: rest, containerPort: 8080, protocol: TCP }
# It must neither refuse a caller while balancers still send some, nor outlive its server.
lifecycle:
  preStop:
    sleep: { seconds: {{ max 1 (sub .Values.drainSeconds 10) }} }
readinessProbe:
  httpGet: { path: /ready, port: rest }
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
livenessProbe:
  httpGet: { path: /live, port: rest }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
resources:
  {{- toYaml .Values.rest.resources | nindent 2 }}
securityContext:
  {{- include "yolov5.containerSecurity" . | nindent 2 }}
volumeMounts:
  - { name: rest-tmp, mountPath: /tmp }
  {{- if .Values.rest.apiKeysSecret }}
  - { name: api-keys, mountPath: /etc/yolov5, readOnly: true }
  {{- end }}
{{- end -}}
