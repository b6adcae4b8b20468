package network

import (
	"strings"
	"testing"
)

func TestParseRoutes(t *testing.T) {
	const head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
	for _, tt := range []struct{ name, table, want string }{
		{"none", head, ""},
		{"empty", "", ""},
		{"only a local net", head + "eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n", ""},
		{"one", head + "eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n", "eth0 0100A8C0"},
		{"the lower metric", head +
			"wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n" +
			"eth0\t00000000\t0100A8C0\t0003\t0\t0\t99\t00000000\t0\t0\t0\n", "eth0 0100A8C0"},
		{"half of everything is no default", head + "tun0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000080\t0\t0\t0\n", ""},
		{"cut off", head + "eth0\t00000000\t0100", ""},
		{"no number", head + "eth0\t00000000\t0100A8C0\t0003\t0\t0\tx\t00000000\t0\t0\t0\n", ""},
	} {
		if got := parseRoutes(strings.NewReader(tt.table)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	zero := strings.Repeat("0", 32)
	router := "fe80" + strings.Repeat("0", 27) + "1"
	row := func(to, hop, metric, name string) string {
		return to + " 00 " + zero + " 00 " + hop + " " + metric + " 00000000 00000000 00000003 " + name + "\n"
	}
	for _, tt := range []struct{ name, table, want string }{
		{"only the loopback", row(zero, zero, "ffffffff", "lo"), ""},
		{"one", row(zero, router, "00000400", "eth0") + row(zero, zero, "ffffffff", "lo"), "eth0 " + router},
		{"the lower metric, in hex", row(zero, router, "00000100", "wlan0") + row(zero, router, "000000ff", "eth0"), "eth0 " + router},
	} {
		if got := parseRoutes6(strings.NewReader(tt.table)); got != tt.want {
			t.Errorf("IPv6, %s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
