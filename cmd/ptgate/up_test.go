package main

import (
	"strings"
	"testing"

	"ptgate/systemd"
)

// The unit of `ptgate up` is that of the repository, with the places of this box.
func TestServiceUnit(t *testing.T) {
	unit, err := serviceUnit("/opt/ptgate", "/srv/a.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nExecStart=/opt/ptgate run\n", "\nExecReload=/opt/ptgate reload\n", "\nEnvironment=PTGATE_CONFIG=/srv/a.toml\n"} {
		if strings.Count(unit, want) != 1 {
			t.Errorf("%q is there %d times", want, strings.Count(unit, want))
		}
	}
	if n := strings.Count(systemd.Unit, "\n"); strings.Count(unit, "\n") != n || !strings.Contains(systemd.Users, "u ptgate ") {
		t.Error("something else has changed")
	}
	if _, err := serviceUnit("/opt/pt gate", "/srv/a.toml"); err == nil {
		t.Error("a path with a space is taken")
	}
	if u := userUnit("/opt/50% off/ptgate", "/home/a/c.toml"); !strings.Contains(u, `ExecStart="/opt/50%% off/ptgate" run -c "/home/a/c.toml"`) ||
		!strings.Contains(u, "\nRestartPreventExitStatus=78\n") { // a configuration with an error is not tried for ever
		t.Error(u)
	}
}
