{{/* Names and labels.  `koa.labels` and `koa.selector` take (list $ component). */}}
{{- define "koa.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "koa.labels" -}}
{{ include "koa.selector" . }}
app.kubernetes.io/part-of: koa-rti
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- define "koa.image" -}}
{{- $root := index . 0 -}}
{{ with $root.Values.image.registry }}{{ . }}/{{ end }}koa-{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{- define "koa.url" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}
{{- $given := ternary $root.Values.peers.preparerUrl $root.Values.peers.ingestorUrl (eq $name "preparer") -}}
{{- $service := index $root.Values.services $name -}}
{{- if $given }}{{ $given -}}
{{- else if $service.enabled }}https://{{ $root.Release.Name }}-{{ $name }}:{{ $service.port -}}
{{- else }}{{ fail (printf "This release has no %s: set peers.%sUrl" $name $name) -}}
{{- end }}
{{- end }}

{{- define "koa.s3" -}}
{{- if .Values.s3.endpoint }}{{ .Values.s3.endpoint -}}
{{- else if .Values.minio.enabled }}https://{{ .Release.Name }}-minio:9000
{{- else }}{{ fail "There is no object store: set s3.endpoint, or minio.enabled for a trial" -}}
{{- end }}
{{- end }}

{{/* Secrets: those that exist, or those that the chart makes. */}}
{{- define "koa.tls" -}}{{ .Values.tls.existingSecret | default (printf "%s-tls" .Release.Name) }}{{- end }}
{{- define "koa.tokens" -}}{{ .Values.tokens.existingSecret | default (printf "%s-tokens" .Release.Name) }}{{- end }}
{{- define "koa.s3keys" -}}{{ .Values.s3.existingSecret | default (printf "%s-s3" .Release.Name) }}{{- end }}

{{/* Restricted pod security; the number is that of the images. */}}
{{- define "koa.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
{{- with .Values.pods.supplementalGroups }}
supplementalGroups: {{ toJson . }}
{{- end }}
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "koa.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* What every pod says besides its containers and volumes. */}}
{{- define "koa.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.pods.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .Values.pods.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .Values.pods.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext: {{- include "koa.podSecurity" . | nindent 2 }}
{{- end }}

{{/* The init container that gathers who is trusted: the system, this release, others. */}}
{{- define "koa.trust" -}}
{{- $root := index . 0 -}}
name: trust
image: {{ include "koa.image" . }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
command:
  - sh
  - -c
  - |
    for file in /etc/ssl/certs/ca-certificates.crt /etc/koa/tls/ca.crt /etc/koa/trust/trust.crt; do
      if [ -e "$file" ]; then cat "$file"; echo; fi
    done > /run/koa/ca.pem
resources:
  requests: { cpu: 10m, memory: 16Mi }
  limits: { memory: 32Mi }
securityContext: {{- include "koa.containerSecurity" $root | nindent 2 }}
volumeMounts:
  - { name: run, mountPath: /run/koa }
  - { name: tls, mountPath: /etc/koa/tls, readOnly: true }
  - { name: trust, mountPath: /etc/koa/trust, readOnly: true }
{{- end }}

{{- define "koa.trustVolumes" -}}
- name: run
  emptyDir: { medium: Memory, sizeLimit: 8Mi }
- name: tls
  secret: { secretName: {{ include "koa.tls" . }}, defaultMode: 288, optional: false }
- name: trust
  configMap: { name: {{ .Release.Name }}-trust }
- name: tokens
  secret: { secretName: {{ include "koa.tokens" . }}, defaultMode: 288, optional: false }
{{- end }}

{{/* Claims of the instruments' disks as a JSON list of claim, mountPath, subPath. */}}
{{- define "koa.disks" -}}
{{- $made := dict "claim" (printf "%s-raw" .Release.Name) "mountPath" "/s" -}}
{{ .Values.rawData.volumes | default (list $made) | toJson }}
{{- end }}

{{/* Mounted at /canary: no place can be made inside a disk that is read-only. */}}
{{- define "koa.canaryClaim" -}}{{ .Values.canary.claim | default (printf "%s-canary" .Release.Name) }}{{- end }}

{{/* Not empty when there are added or changed instruments. */}}
{{- define "koa.instruments" -}}
{{- if or .Values.instruments.existingConfigMap .Values.instruments.files }}yes{{ end }}
{{- end }}

{{/* KOA_SCHEDULE. */}}
{{- define "koa.schedule" -}}
{{- if .Values.schedule.url }}{{ .Values.schedule.url -}}
{{- else if or .Values.schedule.existingConfigMap .Values.schedule.toml }}/etc/koa/schedule/schedule.toml
{{- end }}
{{- end }}
