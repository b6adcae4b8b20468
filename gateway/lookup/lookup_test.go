package lookup

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// read gives what Read makes of an answer.
func read(t *testing.T, serve func(net.Conn)) (addrs []netip.Addr, err error) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() {
			serve(there)
			there.Close()
			close(done)
		}()
		addrs, err = Read(t.Context(), here)
		here.Close()
		<-done
	})
	return addrs, err
}

func TestServe(t *testing.T) {
	many := slices.Repeat([]netip.Addr{netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:6666")}, Most)
	for _, all := range [][]netip.Addr{
		{netip.MustParseAddr("192.0.2.1")},
		{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		many,
	} {
		got, err := read(t, func(c net.Conn) { Serve(c, all) })
		if err != nil || !slices.Equal(got, all) {
			t.Errorf("%v, %v, want %v", got, err, all)
		}
	}
	if got, err := read(t, func(c net.Conn) { Serve(c, append(many, many...)) }); err != nil || len(got) != Most {
		t.Errorf("%d addresses, %v", len(got), err)
	}
}

func TestReadWrong(t *testing.T) {
	for _, text := range []string{"", "\n", "192.0.2.1", "192.0.2.1\n\n", "example.com\n", "fe80::1%eth0\n", "192.0.2.1:443\n",
		strings.Repeat("192.0.2.1\n", Most+1), strings.Repeat("x", 1<<20)} {
		if got, err := read(t, func(c net.Conn) { io.WriteString(c, text) }); err == nil {
			t.Errorf("%.20q: %v", text, got)
		}
	}
}

// Who reads nothing is let go.
func TestServeSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer here.Close()
		begun := time.Now()
		Serve(there, []netip.Addr{netip.MustParseAddr("192.0.2.1")})
		if took := time.Since(begun); took != patience {
			t.Errorf("after %v", took)
		}
	})
}

func ExampleQuestion() {
	fmt.Println(Question("home.example.net" + Suffix))
	fmt.Println(Question("home.example.net"))
	// Output:
	// home.example.net true
	// home.example.net false
}
