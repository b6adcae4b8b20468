package builtin

import (
	"bytes"
	"io"
	"testing"
)

// Connections of obfs4 keep no buffer while nothing comes, and those of one server share
// the table of their padding. What is half a frame is kept.
func TestThin(t *testing.T) {
	l := serverFor(t, nameObfs4, nil)
	dial := clientFor(t, nameObfs4, nil)
	client, server := connect(t, l, dial)
	_, other := connect(t, l, dial)
	a, b := server.(*conn).thin, other.(*conn).thin
	if a == nil || b == nil {
		t.Fatal("the fields of the library's connection are not as expected: see newThin")
	}
	if *a.lengths == nil || *a.lengths != *b.lengths {
		t.Error("two connections of a server have tables of their own")
	}
	empty := func(when string) {
		t.Helper()
		for side, c := range map[string]Conn{"client": client, "server": server} {
			x := c.(*conn).thin
			if x.lent != nil || *x.read != nil || *x.received != nil || *x.decoded != nil {
				t.Errorf("%s: the %s has buffers", when, side)
			}
		}
	}
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	for i, ends := range [][2]Conn{{client, server}, {server, client}} {
		go ends[0].Write(content)
		got := make([]byte, len(content))
		if _, err := io.ReadFull(ends[1], got); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("direction %d: %v", i, err)
		}
		go ends[0].Write(content[:3])
		for _, n := range []int{1, 2} { // the rest waits in between
			if _, err := io.ReadFull(ends[1], got[:n]); err != nil {
				t.Fatalf("direction %d: %q, %v", i, got[:n], err)
			}
		}
	}
	empty("after the transfers")
}
