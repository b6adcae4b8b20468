package main

import (
	"net/netip"
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
	for text, want := range map[string]string{
		systemd.Unit: serviceConfig, unit: "/srv/a.toml", "[Service]\nExecStart=mine": serviceConfig,
		systemd.Unit + "# own.conf\n[Service]\nEnvironment=PTGATE_CONFIG=%d/ptgate.toml\n": "%d/ptgate.toml",
	} {
		if got := unitConfig(text); got != want {
			t.Errorf("a service runs %q, want %q", got, want)
		}
	}
	if _, err := serviceUnit("/opt/pt gate", "/srv/a.toml"); err == nil {
		t.Error("a path with a space is taken")
	}
	if u := userUnit("/opt/50% off/ptgate", "/home/a/c.toml"); !strings.Contains(u, `ExecStart="/opt/50%% off/ptgate" run -c "/home/a/c.toml"`) ||
		!strings.Contains(u, "\nRestartPreventExitStatus=78\n") { // a configuration with an error is not tried for ever
		t.Error(u)
	}
}

// Only an address that leads to one machine from everywhere is good for clients elsewhere.
// Those of documentation stand for such ones.
func TestNearby(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1": "itself", "::1": "itself", "::ffff:127.0.0.1": "itself",
		"10.1.2.3": "private", "172.16.0.1": "private", "192.168.1.2": "private", "fd00::1": "private",
		"169.254.1.1": "one link", "fe80::1": "one link", "100.64.0.1": "NAT", "100.127.255.255": "NAT",
		"198.51.100.7": "", "2001:db8::1": "", "100.128.0.1": "", "172.32.0.1": "",
	} {
		if got := nearby(netip.MustParseAddr(address)); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
}
