package bridges_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"ptgate/gateway/answer"
	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
	"ptgate/gateway/outcome"
	"ptgate/routes"
)

// A manager lives as long as the process; each configuration gives a Set, whose
// routes open connections. Here the only bridge is down.
func Example() {
	dir, err := os.MkdirTemp("", "bridges-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "ptgate.toml")
	os.WriteFile(file, []byte(`
state_dir = "state"
[[route]]
to = "*"
transport = "obfs4"
bridge = "127.0.0.1:1"
args = { cert = "XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA", iat-mode = "0" }
`), 0o600)
	cfg, problems := config.Load(file)
	if cfg == nil {
		fmt.Println(problems)
		return
	}

	log := slog.New(slog.DiscardHandler)
	manager := bridges.NewManager("ptgate", outcome.New(log), log)
	defer manager.Close()
	set := manager.Apply(cfg)
	set.Retire() // of the configuration before, once set is the one in use

	_, err = set.Open(context.Background(), set.Route(0), routes.Target{Name: "www.example.com", Port: 443})
	fmt.Println("answer:", answer.Of(err))
	for _, b := range set.Bridges() {
		fmt.Println("bridge:", b.Status().State)
	}
	// Output:
	// answer: no bridge
	// bridge: resting
}
