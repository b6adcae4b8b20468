package main

import (
	"bytes"
	"os/exec"
	"syscall"
	"testing"
)

// A terminal that says that it takes no commands gets none: one view stands below the
// other, as in a file.
func TestWatchOnDumbTerminal(t *testing.T) {
	c := newChild(t, "run", "-c", "ptgate.toml")
	c.write("ptgate.toml", direct)
	c.startReady()
	for _, kind := range []string{"xterm", "dumb"} {
		keys, tty := openTerminal(t)
		watch := exec.CommandContext(c.patience, "ptgate", "status", "--watch", "-c", "ptgate.toml")
		watch.Dir, watch.Env, watch.Stdout = c.dir, append(c.Env, "TERM="+kind), tty
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		tty.Close()
		var seen []byte
		limit, _ := c.patience.Deadline()
		keys.SetReadDeadline(limit)
		for bytes.Count(seen, []byte("ptgate running")) < 2 {
			b := make([]byte, 4096)
			n, err := keys.Read(b)
			if err != nil {
				t.Fatalf("%s: %q, %v", kind, seen, err)
			}
			seen = append(seen, b[:n]...)
		}
		watch.Process.Kill()
		watch.Wait()
		if got, want := bytes.ContainsRune(seen, '\x1b'), kind != "dumb"; got != want {
			t.Errorf("%s: commands %v, want %v: %q", kind, got, want, seen)
		}
	}
	c.signal(syscall.SIGTERM)
	c.succeeds()
}
