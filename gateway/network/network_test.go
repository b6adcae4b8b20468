package network

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestID(t *testing.T) {
	for _, tt := range []struct{ to, source string }{
		{"127.0.0.1:443", "127.0.0.1"},
		{"127.8.9.10:1", "127.0.0.1"},
		{"[::ffff:127.0.0.1]:443", "127.0.0.1"},
	} {
		id := ID(netip.MustParseAddrPort(tt.to))
		if source, _, _ := strings.Cut(id, " "); source != tt.source {
			t.Errorf("ID(%s) = %q, want one from %s", tt.to, id, tt.source)
		}
		if again := ID(netip.MustParseAddrPort(tt.to)); again != id {
			t.Errorf("ID(%s) = %q, and then %q", tt.to, id, again)
		}
	}
	if id := ID(netip.AddrPort{}); id != "" {
		t.Errorf("ID of no address = %q", id)
	}
}

func ExampleID() {
	id := ID(netip.MustParseAddrPort("127.0.0.1:443"))
	fmt.Println(strings.HasPrefix(id, "127.0.0.1"))
	// Output: true
}
