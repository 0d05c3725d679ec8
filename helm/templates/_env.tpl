{{/* The environment of a service: (list $ name).  What is empty is left to the service. */}}
{{- define "koa.env" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}
{{- $service := index $root.Values.services $name -}}
{{- $made := dict
  "KOA_PORT" $service.port
  "KOA_VAR" "/var/lib/koa"
  "KOA_TOKENS_FILE" "/etc/koa/tokens/tokens.toml"
  "KOA_TLS_CERT_FILE" "/etc/koa/tls/tls.crt"
  "KOA_TLS_KEY_FILE" "/etc/koa/tls/tls.key"
  "KOA_CA_FILE" "/run/koa/ca.pem"
  "KOA_OTLP_ENDPOINT" $root.Values.monitoring.otlpEndpoint -}}
{{- if ne $name "ingestor" -}}
{{- $made = merge $made (dict "KOA_TOKEN_FILE" "/etc/koa/tokens/producer" "KOA_INGESTOR_URL" (include "koa.url" (list $root "ingestor"))) -}}
{{- if $root.Values.canary.enabled -}}
{{- $map := $service.settings.KOA_PATH_MAP | default "/s=/s" -}}
{{- $_ := set $made "KOA_PATH_MAP" (printf "%s,/s/sdata0/canary=/canary" $map) -}}
{{- end -}}
{{- if include "koa.instruments" $root -}}{{- $_ := set $made "KOA_INSTRUMENTS_DIR" "/etc/koa/instruments" -}}{{- end -}}
{{- end -}}
{{- if eq $name "monitor" -}}
{{- $_ := set $made "KOA_PREPARER_URL" (include "koa.url" (list $root "preparer")) -}}
{{- $_ := set $made "KOA_CANARY_SECONDS" (ternary $root.Values.canary.everySeconds 0 $root.Values.canary.enabled) -}}
{{- else -}}
{{- $made = merge $made (dict
  "KOA_S3_ENDPOINT" (include "koa.s3" $root)
  "KOA_S3_REGION" $root.Values.s3.region
  "KOA_S3_ACCESS_KEY_FILE" "/etc/koa/s3/access-key"
  "KOA_S3_SECRET_KEY_FILE" "/etc/koa/s3/secret-key"
  "KOA_STAGING_BUCKET" $root.Values.s3.stagingBucket
  "KOA_ARCHIVE_BUCKET" $root.Values.s3.archiveBucket) -}}
{{- end -}}
{{- if eq $name "preparer" -}}
{{- $_ := set $made "KOA_SCHEDULE" (include "koa.schedule" $root) -}}
{{- if or $root.Values.keywordTables.existingConfigMap $root.Values.keywordTables.files -}}
{{- $_ := set $made "KOA_KEYWORD_TABLES_DIR" "/etc/koa/keyword-tables" -}}
{{- end -}}
{{- end -}}
{{- if $root.Values.database.existingSecret -}}
- name: KOA_DATABASE_URL
  valueFrom:
    secretKeyRef: { name: {{ $root.Values.database.existingSecret }}, key: {{ $name }} }
{{- end }}
{{- range $key, $value := merge $made $service.settings $service.env }}
{{- /* Helm reads whole numbers as fractions; 268435456 must not become 2.68435456e+08. */}}
{{- $text := ternary (printf "%v" $value) (toString $value) (kindIs "string" $value) }}
{{- if kindIs "float64" $value }}{{- $text = ternary (int64 $value | toString) (toString $value) (eq (floor $value) $value) }}{{- end }}
{{- if $text }}
- { name: {{ $key }}, value: {{ $text | quote }} }
{{- end }}
{{- end }}
{{- end }}
