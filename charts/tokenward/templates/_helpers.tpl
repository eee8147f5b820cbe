{{/* The prefix of all names. */}}
{{- define "tokenward.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "tokenward" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-tokenward" (.Release.Name | trunc 30 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* Labels for selectors, which never change in the life of a release. Call: (list "controller" $). */}}
{{- define "tokenward.selector" -}}
{{- $component := index . 0 -}}{{- $root := index . 1 -}}
app.kubernetes.io/name: tokenward
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ $component }}
{{- end -}}

{{/* The labels of an object. Call: (list "controller" $). */}}
{{- define "tokenward.labels" -}}
{{- $root := index . 1 -}}
{{ include "tokenward.selector" . }}
app.kubernetes.io/part-of: tokenward
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tokenward.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" if only some namespaces are watched, so that nothing may be cluster-wide. */}}
{{- define "tokenward.tenant" -}}
{{- if .Values.watchNamespaces }}true{{ end -}}
{{- end -}}

{{/* "true" if the controller serves the admission webhook. */}}
{{- define "tokenward.admission" -}}
{{- if and .Values.admission.enabled (not .Values.watchNamespaces) }}true{{ end -}}
{{- end -}}

{{/* The failure policy for ApiTokens; values.yaml has the reasons. */}}
{{- define "tokenward.failurePolicy" -}}
{{- $chosen := .Values.admission.failurePolicy.apiTokens -}}
{{- if not .Values.admission.enforceScopeGrants -}}
{{- default "Ignore" $chosen -}}
{{- else if eq $chosen "Ignore" -}}
{{- fail "admission.failurePolicy.apiTokens=Ignore would let anybody grant any scope while the controller is away; leave it empty with admission.enforceScopeGrants" -}}
{{- else -}}
Fail
{{- end -}}
{{- end -}}

{{/* Environment variables of admission; each stands for a flag. */}}
{{- define "tokenward.admissionEnv" -}}
{{- $fullname := include "tokenward.fullname" . -}}
{{- with .Values.admission -}}
{{- if include "tokenward.admission" $ -}}
- {name: TOKENWARD_ADMISSION_LISTEN, value: "[::]:{{ $.Values.controller.ports.admission | int }}"}
- {name: TOKENWARD_ADMISSION_SERVICE, value: {{ $fullname }}-admission}
{{- if .certificate.certManager.enabled }}
- {name: TOKENWARD_ADMISSION_TLS_CERT, value: /run/secrets/admission/tls.crt}
- {name: TOKENWARD_ADMISSION_TLS_KEY, value: /run/secrets/admission/tls.key}
{{- else }}
- {name: TOKENWARD_ADMISSION_CONFIGURATION, value: {{ $fullname }}}
- {name: TOKENWARD_ADMISSION_CERTIFICATE_LIFETIME, value: {{ .certificate.lifetime }}}
{{- end }}
{{- if .clientCA.configMapName }}
- {name: TOKENWARD_ADMISSION_CLIENT_CA, value: /run/configmaps/admission-client-ca/ca.crt}
{{- end }}
{{- if .enforceScopeGrants }}
- {name: TOKENWARD_ENFORCE_SCOPE_GRANTS, value: "true"}
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Flags of both roles, as list items. */}}
{{- define "tokenward.commonArgs" -}}
- --namespace=$(POD_NAMESPACE)
- {{ printf "--log=%s" .Values.log.filter | quote }}
- --log-format={{ .Values.log.format }}
{{- with .Values.watchNamespaces }}
- --watch-namespaces={{ join "," . }}
{{- end }}
{{- end -}}

{{- define "tokenward.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Spreads replicas over nodes and zones: as a preference, so that a small cluster can run them too. Call: (list "controller" $). */}}
{{- define "tokenward.spread" -}}
{{- $component := index . 0 -}}{{- $root := index . 1 -}}
{{- $ours := dict "labelSelector" (dict "matchLabels" (include "tokenward.selector" . | fromYaml)) -}}
{{- with (index $root.Values $component).topologySpreadConstraints }}
{{- range . }}
{{ list (hasKey . "labelSelector" | ternary . (merge (deepCopy .) $ours)) | toYaml }}
{{- end }}
{{- else }}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels: {{- include "tokenward.selector" $ | nindent 6 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where a pod may run, and its priority. Call with the values of a role. */}}
{{- define "tokenward.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Probes on the telemetry port. */}}
{{- define "tokenward.probes" -}}
livenessProbe:
  httpGet: {path: /livez, port: telemetry}
  periodSeconds: 10
  # Lenient, as a busy node must not restart a pod that works.
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: telemetry}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 1
{{- end -}}

{{/* Who may read metrics. */}}
{{- define "tokenward.telemetryIngress" -}}
- ports:
    - {port: telemetry}
  {{- with .Values.networkPolicy.telemetryFrom }}
  from: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Egress that every pod needs: DNS and the API server. */}}
{{- define "tokenward.clusterEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
    {{- range .Values.networkPolicy.apiServerPorts }}
    - {port: {{ . | int }}, protocol: TCP}
    {{- end }}
{{- end -}}

{{/* The binding of a ValidatingAdmissionPolicy, by which it denies. Arguments: the policy's name, and the root. */}}
{{- define "tokenward.policyBinding" -}}
{{- $name := first . -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ $name }}
  labels: {{- include "tokenward.labels" (list "admission" (last .)) | nindent 4 }}
spec:
  policyName: {{ $name }}
  validationActions: [Deny]
{{- end -}}
