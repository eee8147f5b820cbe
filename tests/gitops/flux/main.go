// Command flux reconciles a folder of a Git repository once, as Flux's source- and kustomize-controller do: clone,
// build by kustomize, apply by server-side apply, prune by inventory, wait by kstatus. The engine is Flux's own
// (github.com/fluxcd/pkg/ssa); this program only calls it in the same order.
//
// It prints the outcome for each object as JSON. A failure is printed on stderr, with the message that the controllers
// would write into the condition Ready of a Kustomization.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/polling"
	"github.com/fluxcd/cli-utils/pkg/kstatus/polling/clusterreader"
	"github.com/fluxcd/cli-utils/pkg/kstatus/polling/engine"
	"github.com/fluxcd/cli-utils/pkg/object"
	"github.com/fluxcd/pkg/ssa"
	"github.com/fluxcd/pkg/ssa/normalize"
	"github.com/fluxcd/pkg/ssa/utils"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// options has the settings of a GitRepository and a Kustomization.
type options struct {
	repository string
	path       string
	namespace  string
	inventory  string
	timeout    time.Duration
	drift      bool
}

// outcome is what was done with one object.
type outcome struct {
	Object string `json:"object"`
	Action string `json:"action"`
}

func main() {
	var o options
	flag.StringVar(&o.repository, "repository", "", "URL of the Git repository")
	flag.StringVar(&o.path, "path", ".", "folder in it, which holds a kustomization")
	flag.StringVar(&o.namespace, "namespace", "default", "target namespace")
	flag.StringVar(&o.inventory, "inventory", "", "file that remembers what was applied")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to wait for readiness")
	flag.BoolVar(&o.drift, "drift", false, "only print what differs from Git, and change nothing")
	flag.Parse()
	outcomes, err := run(context.Background(), o)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(outcomes)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) ([]outcome, error) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	manager, err := newManager(config)
	if err != nil {
		return nil, err
	}
	objects, err := build(ctx, o)
	if err != nil {
		return nil, err
	}
	manager.SetOwnerLabels(objects, "tokens", "flux-system")
	if o.drift {
		return drift(ctx, manager, objects)
	}
	return reconcile(ctx, manager, objects, o)
}

func newManager(config *rest.Config) (*ssa.ResourceManager, error) {
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	mapper, err := apiutil.NewDynamicRESTMapper(config, http)
	if err != nil {
		return nil, err
	}
	kube, err := client.New(config, client.Options{Mapper: mapper, HTTPClient: http})
	if err != nil {
		return nil, err
	}
	poller := polling.NewStatusPoller(kube, mapper, polling.Options{
		ClusterReaderFactory: engine.ClusterReaderFactoryFunc(clusterreader.NewDirectClusterReader),
	})
	owner := ssa.Owner{Field: "kustomize-controller", Group: "kustomize.toolkit.fluxcd.io"}
	return ssa.NewResourceManager(kube, poller, owner), nil
}

// build clones the repository and builds the folder.
func build(ctx context.Context, o options) ([]*unstructured.Unstructured, error) {
	folder, err := os.MkdirTemp("", "flux-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	clone := exec.CommandContext(ctx, "git", "clone", "--quiet", "--depth=1", o.repository, folder)
	if output, err := clone.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("git clone: %w: %s", err, output)
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(folder, o.path))
	if err != nil {
		return nil, err
	}
	yaml, err := resources.AsYaml()
	if err != nil {
		return nil, err
	}
	objects, err := utils.ReadObjects(bytes.NewReader(yaml))
	if err != nil {
		return nil, err
	}
	for _, object := range objects {
		object.SetNamespace(o.namespace)
	}
	return objects, normalize.UnstructuredList(objects)
}

// reconcile is the main part of kustomize-controller's reconciliation.
func reconcile(ctx context.Context, manager *ssa.ResourceManager, objects []*unstructured.Unstructured, o options) ([]outcome, error) {
	changes, err := manager.ApplyAllStaged(ctx, objects, ssa.DefaultApplyOptions())
	if err != nil {
		return nil, err
	}
	outcomes := []outcome{}
	for _, entry := range changes.Entries {
		outcomes = append(outcomes, outcome{entry.Subject, entry.Action.String()})
	}
	pruned, err := prune(ctx, manager, changes.ToObjMetadataSet(), o.inventory)
	if err != nil {
		return nil, err
	}
	err = manager.WaitForSet(changes.ToObjMetadataSet(), ssa.WaitOptions{Interval: 200 * time.Millisecond, Timeout: o.timeout, FailFast: true})
	return append(outcomes, pruned...), err
}

// prune deletes what was applied the last time and is no longer in Git.
func prune(ctx context.Context, manager *ssa.ResourceManager, applied object.ObjMetadataSet, inventory string) ([]outcome, error) {
	before, err := read(inventory)
	if err != nil {
		return nil, err
	}
	stale := []*unstructured.Unstructured{}
	for _, identity := range before.Diff(applied) {
		gone := &unstructured.Unstructured{}
		gone.SetGroupVersionKind(identity.GroupKind.WithVersion("v1alpha1"))
		gone.SetNamespace(identity.Namespace)
		gone.SetName(identity.Name)
		stale = append(stale, gone)
	}
	deleted, err := manager.DeleteAll(ctx, stale, ssa.DeleteOptions{
		PropagationPolicy: metav1.DeletePropagationBackground,
		Inclusions:        manager.GetOwnerLabels("tokens", "flux-system"),
	})
	if err != nil {
		return nil, err
	}
	outcomes := []outcome{}
	for _, entry := range deleted.Entries {
		outcomes = append(outcomes, outcome{entry.Subject, entry.Action.String()})
	}
	return outcomes, write(inventory, applied)
}

// drift returns the objects that differ in the cluster from Git.
func drift(ctx context.Context, manager *ssa.ResourceManager, objects []*unstructured.Unstructured) ([]outcome, error) {
	outcomes := []outcome{}
	for _, object := range objects {
		entry, _, _, err := manager.Diff(ctx, object, ssa.DiffOptions{})
		if err != nil {
			return nil, err
		}
		if entry.Action != ssa.UnchangedAction {
			outcomes = append(outcomes, outcome{entry.Subject, entry.Action.String()})
		}
	}
	return outcomes, nil
}

// entry is an object in the inventory.
type entry struct{ Group, Kind, Namespace, Name string }

func read(inventory string) (object.ObjMetadataSet, error) {
	text, err := os.ReadFile(inventory)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var entries []entry
	if err == nil {
		err = json.Unmarshal(text, &entries)
	}
	set := object.ObjMetadataSet{}
	for _, e := range entries {
		set = append(set, object.ObjMetadata{GroupKind: schema.GroupKind{Group: e.Group, Kind: e.Kind}, Namespace: e.Namespace, Name: e.Name})
	}
	return set, err
}

func write(inventory string, set object.ObjMetadataSet) error {
	entries := []entry{}
	for _, o := range set {
		entries = append(entries, entry{o.GroupKind.Group, o.GroupKind.Kind, o.Namespace, o.Name})
	}
	text, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	return os.WriteFile(inventory, text, 0o600)
}
