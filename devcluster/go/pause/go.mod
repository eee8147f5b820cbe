// The process that holds a pod's namespaces. No dependencies.
module tokenward.dev/devcluster/pause

go 1.26.0
