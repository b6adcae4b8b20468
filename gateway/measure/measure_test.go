package measure_test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"ptgate/gateway/measure"
)

func Example() {
	near, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { measure.Serve(far); far.Close() })
	measure.Ask(near, 40_000)
	n, _ := io.CopyN(io.Discard, near, 40_000)
	near.Close()
	wg.Wait()
	fmt.Println(n, "bytes")
	// Output: 40000 bytes
}

// A client can't make the exit send without end.
func TestMost(t *testing.T) {
	near, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { measure.Serve(far); far.Close() })
	got := int64(0)
	for range 2 * measure.Most >> 20 {
		if measure.Ask(near, 1<<20) != nil {
			break
		}
		n, _ := io.CopyN(io.Discard, near, 1<<20)
		got += n
	}
	near.Close()
	wg.Wait()
	if got != measure.Most {
		t.Errorf("%d bytes, want %d", got, measure.Most)
	}
}
