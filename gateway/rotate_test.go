package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ptgate/gateway"
)

// A running server takes new keys, and says so in its notes. The old ones lead to it still,
// and what is open stays open. What is wrong changes nothing.
func TestRotate(t *testing.T) {
	o := origin(t, echo)
	server, first := far(t, "")
	near := start(t, "client", fmt.Sprintf(nearEnd, first))
	held := mustAsk(t, near, o)
	cfg := loadText(t, server.path, fmt.Sprintf(farEnd, ""))
	name := gateway.ServeName(cfg.Serve[0])

	if err := server.Rotate(t.Context(), []string{"obfs4 192.0.2.1:1"}, time.Now()); err == nil || !strings.Contains(err.Error(), "ptgate reload") {
		t.Errorf("one that is not there: %v", err)
	}
	if bridge(server) != first {
		t.Error("a refused rotation has changed the line")
	}
	until := time.Now().Add(time.Hour)
	if err := server.Rotate(t.Context(), []string{name}, until); err != nil {
		t.Fatal(err)
	}
	second := bridge(server)
	if s := server.Status().Serve[0]; !s.OldUntil.Equal(until) {
		t.Errorf("the status has the end %v", s.OldUntil)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := server.Rotate(gone, []string{name}, until); !errors.Is(err, context.Canceled) || bridge(server) != second {
		t.Errorf("for somebody who has gone: %v", err)
	}
	noted, ok := gateway.Noted(cfg, cfg.StateDir)
	if !ok || second == first || fmt.Sprint(noted[0].Args) != fmt.Sprint(server.Announced()[0].Args) || !noted[0].Old.Equal(until) {
		t.Errorf("noted: %v, %v; announced: %v", noted, ok, server.Announced())
	}
	for _, line := range []string{first, second} {
		roundTrip(t, mustAsk(t, start(t, "another", fmt.Sprintf(nearEnd, line)), o), 1<<10)
	}

	// The file is damaged.
	file := filepath.Join(cfg.StateDir, "server-obfs4", "obfs4_rotation.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, good[:len(good)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := server.Rotate(t.Context(), []string{name}, until); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged file: %v", err)
	}
	if err := server.Reload(cfg); err != nil || bridge(server) != second {
		t.Errorf("a reload with a damaged file: %v", err)
	}
	// A copy is put in its place, and another ptgate has rotated there.
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := gateway.Rotate(cfg, cfg.StateDir, []string{name}, until); err != nil {
		t.Fatal(err)
	}
	if err := server.Reload(cfg); err != nil || bridge(server) == second {
		t.Errorf("a reload does not take the new keys: %v", err)
	}
	if err := server.Rotate(t.Context(), []string{name}, time.Now()); err != nil || !server.Status().Serve[0].OldUntil.IsZero() {
		t.Errorf("the end at once: %v, %v", err, server.Status().Serve[0])
	}
	roundTrip(t, held, 1<<10)
}

// Servers whose port the system chooses have one name: each one is rotated once.
func TestRotateNamesakes(t *testing.T) {
	cfg := loadText(t, filepath.Join(t.TempDir(), "server.toml"), fmt.Sprintf(farEnd, "")+"\n[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:0\"\n")
	if _, err := gateway.Announce(t.Context(), cfg, ""); err != nil {
		t.Fatal(err)
	}
	names := []string{gateway.ServeName(cfg.Serve[0]), gateway.ServeName(cfg.Serve[1])}
	if err := gateway.Rotate(cfg, cfg.StateDir, append(names, "obfs4 192.0.2.1:1"), time.Now().Add(time.Hour)); err == nil {
		t.Error("one that is not there")
	}
	files := func() []string {
		all, _ := filepath.Glob(filepath.Join(cfg.StateDir, "*", "*_rotation.json"))
		return all
	}
	if got := files(); len(got) > 0 {
		t.Errorf("beside one that is not there, others are rotated: %q", got)
	}
	if err := gateway.Rotate(cfg, cfg.StateDir, names, time.Now().Add(time.Hour)); err != nil || len(files()) != 2 {
		t.Errorf("%q: %q, %v", names, files(), err)
	}
}
