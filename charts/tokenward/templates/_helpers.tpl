{{/* What it is called in the names of objects, and in the label by which pods are selected. */}}
{{- define "tokenward.name" -}}
{{- default "tokenward" .Values.nameOverride -}}
{{- end -}}

{{/* The prefix of all names. */}}
{{- define "tokenward.fullname" -}}
{{- $name := include "tokenward.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.Release.Name | trunc (sub 39 (len $name) | int) | trimSuffix "-") $name -}}
{{- end -}}
{{- end -}}

{{/* Where everything is that has a namespace, but for the rights in namespaces that are watched. */}}
{{- define "tokenward.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{/* The ServiceAccount of a role. Call: (list "controller" $). */}}
{{- define "tokenward.serviceAccount" -}}
{{- $role := index . 0 -}}{{- $root := index . 1 -}}
{{- default (printf "%s-%s" (include "tokenward.fullname" $root) $role) (index $root.Values $role).serviceAccount.name -}}
{{- end -}}

{{/* The pods of a release. */}}
{{- define "tokenward.releaseSelector" -}}
app.kubernetes.io/name: {{ include "tokenward.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels for selectors, which never change in the life of a release. Call: (list "controller" $). */}}
{{- define "tokenward.selector" -}}
{{- $component := index . 0 -}}{{- $root := index . 1 -}}
{{ include "tokenward.releaseSelector" $root }}
app.kubernetes.io/component: {{ $component }}
{{- end -}}

{{/* The labels of an object. Call: (list "controller" $). */}}
{{- define "tokenward.labels" -}}
{{- include "tokenward.mergedLabels" (append . nil) -}}
{{- end -}}

{{/* The same with the user's for this object, which come before all others. Call: (list "controller" $ .labels). */}}
{{- define "tokenward.mergedLabels" -}}
{{- $root := index . 1 -}}
{{- $selector := include "tokenward.selector" . | fromYaml -}}
{{- $users := merge (deepCopy (default dict (index . 2))) $root.Values.commonLabels -}}
{{- range $key, $_ := $selector -}}
{{- if hasKey $users $key -}}
{{- fail (printf "the label %s can't be set: the chart selects pods by it; choose another key" $key) -}}
{{- end -}}
{{- end -}}
{{- $ours := dict "app.kubernetes.io/part-of" "tokenward" "app.kubernetes.io/version" $root.Chart.AppVersion "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- merge $selector $users $ours | toYaml -}}
{{- end -}}

{{/* Annotations of which the user's come before ours. Call: (list .podAnnotations (dict ...)). */}}
{{- define "tokenward.mergedAnnotations" -}}
{{- merge (deepCopy (default dict (first .))) (last .) | toYaml -}}
{{- end -}}

{{- define "tokenward.image" -}}
{{- with .Values.image -}}
{{- with .registry }}{{ . }}/{{ end -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The flags of a role, then the user's. Fails if a variable of the user's would have no effect, since a flag comes before it.
Call: (list "controller" $ "- --flag=..."). */}}
{{- define "tokenward.args" -}}
{{- $role := index . 0 -}}{{- $root := index . 1 -}}
{{- $values := index $root.Values $role -}}
{{- $flags := printf "%s\n%s" (include "tokenward.commonArgs" $root) (index . 2) | fromYamlArray -}}
{{- range $flags -}}
{{- $variable := regexFind "^--[a-z-]+" . | trimPrefix "--" | replace "-" "_" | upper | printf "TOKENWARD_%s" -}}
{{- range $values.extraEnv -}}
{{- if eq .name $variable -}}
{{- fail (printf "%s.extraEnv: %s would have no effect, as the chart sets this flag; use its own value, or %s.extraArgs" $role $variable $role) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- concat $flags (default list $values.extraArgs) | toYaml -}}
{{- end -}}

{{/* "true" if only some namespaces are watched, so that nothing may be cluster-wide. */}}
{{- define "tokenward.tenant" -}}
{{- if .Values.watchNamespaces }}true{{ end -}}
{{- end -}}

{{/* "true" if the controller serves the admission webhook. */}}
{{- define "tokenward.admission" -}}
{{- if and .Values.admission.enforceScopeGrants (or (not .Values.admission.enabled) .Values.watchNamespaces) -}}
{{- fail "admission.enforceScopeGrants needs the admission webhook: leave admission.enabled true and watchNamespaces empty" -}}
{{- end -}}
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

{{/* What a pod needs to pull its image, where it may run, its priority, and how it finds other hosts.
Call: (list "controller" $). */}}
{{- define "tokenward.podFields" -}}
{{- $root := last . -}}{{- $values := index $root.Values (first .) -}}
enableServiceLinks: {{ $values.enableServiceLinks }}
{{- if ne $values.hostUsers nil }}
hostUsers: {{ $values.hostUsers }}
{{- end }}
{{- with include "tokenward.pullSecrets" $root | fromYamlArray }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- with merge (deepCopy (default dict $values.nodeSelector)) $root.Values.global.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $field := list "dnsConfig" "hostAliases" "priorityClassName" "schedulerName" "runtimeClassName" "tolerations" "affinity" }}
{{- with index $values $field }}
{{ toYaml (dict $field .) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A list, of which a parent chart may have names alone. */}}
{{- define "tokenward.pullSecrets" -}}
{{- range concat (default list .Values.imagePullSecrets) (default list .Values.global.imagePullSecrets) }}
{{ list (kindIs "string" . | ternary (dict "name" .) .) | toYaml }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of a Service. Call: (list "admission" $ .service). */}}
{{- define "tokenward.serviceMetadata" -}}
labels: {{- include "tokenward.mergedLabels" (list (first .) (index . 1) (last .).labels) | nindent 2 }}
{{- with (last .).annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Fields of a Service. Call: (list .service "ipFamilyPolicy" ...). */}}
{{- define "tokenward.serviceFields" -}}
{{- range $field := rest . }}
{{- with index (first $) $field }}
{{ $field }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Probes on the telemetry port. Call with the values of a role. */}}
{{- define "tokenward.probes" -}}
{{- range $probe, $path := dict "livenessProbe" "/livez" "readinessProbe" "/readyz" }}
{{- with index $ $probe }}
{{ $probe }}:
  {{- merge (dict "httpGet" (dict "path" $path "port" "telemetry")) . | toYaml | nindent 2 }}
{{- end }}
{{- end }}
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

{{/* A CEL expression: whether the request is the controller's. By its rights, and not by its namespace, which kustomize would not
change here. Another ServiceAccount of this name has not the right, and whoever else has it, such as a cluster's admin, has
another name. */}}
{{- define "tokenward.isController" -}}
request.userInfo.username.startsWith('system:serviceaccount:')
&& request.userInfo.username.endsWith(':{{ include "tokenward.serviceAccount" (list "controller" .) }}')
&& authorizer.group('tokenward.dev').resource('apitokens').subresource('status').check('update').allowed()
{{- end -}}

{{/* How Prometheus scrapes a pod. Call with the values of a monitor. */}}
{{- define "tokenward.scrape" -}}
{{- range $field := list "interval" "scrapeTimeout" "honorLabels" "relabelings" "metricRelabelings" -}}
{{- with index $ $field }}
{{ $field }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end -}}
