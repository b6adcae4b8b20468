package bridges

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestGreet(t *testing.T) {
	for _, c := range []struct {
		auth bool
		says string
		sent string
		want string // in the error; "": none
	}{
		{false, "\x05\x00", "\x05\x01\x00", ""},
		{true, "\x05\x02", "\x05\x01\x02", ""},
		{false, "\x05\xff", "\x05\x01\x00", "asks for a user"},
		{true, "\x05\xff", "\x05\x01\x02", "takes no user"},
		{true, "\x05\x00", "\x05\x01\x02", "takes no user"},
		{false, "HT", "\x05\x01\x00", "version 72"},
		{false, "\x05", "\x05\x01\x00", "no answer"},
		{false, "", "\x05\x01\x00", "no answer"},
	} {
		near, far := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			defer far.Close()
			b := make([]byte, 3)
			if _, err := io.ReadFull(far, b); err != nil || string(b) != c.sent {
				t.Errorf("%q: it was sent %q, %v", c.says, b, err)
			}
			io.WriteString(far, c.says)
		})
		err := greet(t.Context(), near, c.auth)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.says, err, c.want)
		}
		near.Close()
		wg.Wait()
	}
}

// Silence ends with the context.
func TestGreetSilence(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := greet(ctx, near, false)
	if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		t.Errorf("%v", err)
	}
}
