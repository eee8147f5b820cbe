{{/* What the controller may do in each namespace that it watches. */}}
{{- define "tokenward.controllerRules" -}}
- apiGroups: [tokenward.dev]
  resources: [apitokens]
  # patch: for its finalizer on tokens to whose deletion a TokenWebhook subscribes.
  verbs: [get, list, watch, patch]
- apiGroups: [tokenward.dev]
  resources: [tokenlocks]
  # patch: for its finalizer on those that revoke.
  verbs: [get, list, watch, patch]
- apiGroups: [tokenward.dev]
  resources: [tokenwebhooks]
  verbs: [get, list, watch]
- apiGroups: [tokenward.dev]
  resources: [apitokens/status, tokenlocks/status, tokenwebhooks/status]
  verbs: [update]
# The Secrets that tokens are delivered into. Listed and watched by label and as metadata only.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, update, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/* What a verifier may do in each namespace that it watches. */}}
{{- define "tokenward.verifierRules" -}}
- apiGroups: [tokenward.dev]
  resources: [apitokens, tokenlocks]
  verbs: [get, list, watch]
{{- end -}}

{{/* What both do with ClusterTokenLocks, which only an installation for all namespaces follows. */}}
{{- define "tokenward.controllerClusterRules" -}}
- apiGroups: [tokenward.dev]
  resources: [clustertokenlocks]
  verbs: [get, list, watch, patch]
- apiGroups: [tokenward.dev]
  resources: [clustertokenlocks/status]
  verbs: [update]
{{- end -}}
{{- define "tokenward.verifierClusterRules" -}}
- apiGroups: [tokenward.dev]
  resources: [clustertokenlocks]
  verbs: [get, list, watch]
{{- end -}}

{{/* A Role and its binding. Call: (dict "root" $ "role" "controller" "namespace" "..." "rules" "..."). */}}
{{- define "tokenward.role" -}}
{{- $name := printf "%s-%s" (include "tokenward.fullname" .root) .role -}}
---
{{- with .why }}
# {{ . }}
{{- end }}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}{{ .suffix }}
  namespace: {{ .namespace }}
  labels: {{- include "tokenward.labels" (list .role .root) | nindent 4 }}
rules: {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}{{ .suffix }}
  namespace: {{ .namespace }}
  labels: {{- include "tokenward.labels" (list .role .root) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}{{ .suffix }}
subjects:
  - kind: ServiceAccount
    name: {{ include "tokenward.serviceAccount" (list .role .root) }}
    namespace: {{ include "tokenward.namespace" .root }}
{{- end -}}

{{/* A ClusterRole and its binding. Call: (dict "root" $ "role" "controller" "rules" "..."). */}}
{{- define "tokenward.clusterRole" -}}
{{- $name := printf "%s-%s" (include "tokenward.fullname" .root) .role -}}
---
{{- with .why }}
# {{ . }}
{{- end }}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels: {{- include "tokenward.labels" (list .role .root) | nindent 4 }}
rules: {{- .rules | nindent 2 }}
---
{{ include "tokenward.clusterRoleBinding" (dict "root" .root "role" .role "name" $name "clusterRole" $name) }}
{{- end -}}

{{- define "tokenward.clusterRoleBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels: {{- include "tokenward.labels" (list .role .root) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .clusterRole }}
subjects:
  - kind: ServiceAccount
    name: {{ include "tokenward.serviceAccount" (list .role .root) }}
    namespace: {{ include "tokenward.namespace" .root }}
{{- end -}}

{{- define "tokenward.leaderRules" -}}
{{- $name := printf "%s-controller" (include "tokenward.fullname" .) -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ $name }}]
  verbs: [get, update]
{{- end -}}

{{/* Names can't be given to a list or a creation; there is nothing secret in the ConfigMaps beside them. */}}
{{- define "tokenward.ledgerRules" -}}
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, update]
{{- end -}}

{{- define "tokenward.endpointRules" -}}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
{{- end -}}

{{- define "tokenward.pepperRules" -}}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [tokenward-pepper]
  verbs: [get, list, watch]
{{- end -}}

{{- define "tokenward.pepperMakerRules" -}}
{{ include "tokenward.pepperRules" . }}
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
{{- end -}}

{{/* The additional rights for admission: its own configuration, and checks of who may grant. */}}
{{- define "tokenward.admissionRules" -}}
{{- if include "tokenward.admission" . -}}
{{- if not .Values.admission.certificate.certManager.enabled -}}
# To write the caBundle.
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingwebhookconfigurations]
  resourceNames: [{{ include "tokenward.fullname" . }}]
  verbs: [get, list, watch, patch]
{{- end }}

# To check who may grant a scope, with admission.enforceScopeGrants.
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
{{- end -}}
{{- end -}}
