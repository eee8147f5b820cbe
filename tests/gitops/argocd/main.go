// Command argocd assesses one object by Argo CD's own code: its health by a Lua script, and whether it differs from Git.
//
//	argocd health SCRIPT   <live.json
//	argocd diff CONFIG     <live.json
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/argoproj/argo-cd/gitops-engine/pkg/diff"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: argocd health SCRIPT | argocd diff CONFIG, with the live object on standard input")
	}
	file, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	live, err := parse(text)
	if err != nil {
		return err
	}
	switch args[0] {
	case "health":
		return health(live, string(file), out)
	case "diff":
		config, err := parse(file)
		if err != nil {
			return err
		}
		return difference(config, live, out)
	default:
		return fmt.Errorf("%q is not known", args[0])
	}
}

// health runs the script with Lua's libraries closed, as Argo CD does by default.
func health(live *unstructured.Unstructured, script string, out io.Writer) error {
	status, err := lua.VM{}.ExecuteHealthLua(live, script)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(status)
}

func difference(config, live *unstructured.Unstructured, out io.Writer) error {
	// An Application adds its namespace.
	config.SetNamespace(live.GetNamespace())
	result, err := diff.Diff(config, live)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(map[string]any{
		"modified":  result.Modified,
		"live":      json.RawMessage(result.NormalizedLive),
		"predicted": json.RawMessage(result.PredictedLive),
	})
}

func parse(text []byte) (*unstructured.Unstructured, error) {
	object := &unstructured.Unstructured{}
	return object, yaml.Unmarshal(text, &object.Object)
}
