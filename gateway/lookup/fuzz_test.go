package lookup

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"

	"ptgate/gateway/stream"
)

// Whatever a far end answers, what is read is a list that Serve could have given, or none.
func FuzzRead(f *testing.F) {
	for _, s := range []string{"192.0.2.1\n", "2001:db8::1\n192.0.2.1\n", "::ffff:192.0.2.1\n", "fe80::1%eth0\n", "192.0.2.1", "\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		here, there := net.Pipe()
		there.Close()
		defer here.Close()
		addrs, err := Read(t.Context(), stream.Ahead(stream.From(here), b))
		if err != nil {
			return
		}
		if len(addrs) == 0 || len(addrs) > Most || len(b) > maxAnswer || bytes.ContainsRune(b, '%') ||
			slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() || a.Is4In6() }) {
			t.Errorf("%q: %v", b, addrs)
		}
	})
}
