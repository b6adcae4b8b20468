//go:build integration

package attack

import (
	"fmt"
	"io"
	"testing"
	"time"
)

// A malicious far end takes every request, confirms every byte, answers every ping, and
// answers nothing that it is asked for. It is the first of two bridges. No request may be
// lost to it, and it must not stay the first one.
func TestFarEndThatAnswersNothing(t *testing.T) {
	stuck := newFarEnd(t, func(c *farCarrier) {
		for {
			m, err := c.in.next()
			if err != nil {
				return
			}
			b := frame(nil, fAck, c.hello.number, c.in.at)
			if m.kind == fPing {
				b = frame(b, fPong, m.numbers[0])
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	_, good := startServer(t, "")
	text := "[listen]\nmixed = [\"127.0.0.1:0\"]\n[limits]\nstagger = \"500ms\"\ndial = \"6s\"\n"
	for name, b := range map[string]bridge{"stuck": stuck.bridge, "good": good} {
		text += fmt.Sprintf("[bridge.%s]\ntransport = \"obfs4\"\naddress = %q\nargs = { cert = %q, iat-mode = \"0\" }\n", name, b.address, b.cert)
	}
	gateway := start(t, "gateway", text+"[[route]]\nto = \"*\"\nvia = [\"stuck\", \"good\"]\n")
	site := listen(t, echo)
	const requests = 10
	served, late := 0, 0
	// On a busy machine any request may be late: then there are more of them.
	for i, start := 0, time.Now(); i < requests || late == served && time.Since(start) < patience; i++ {
		begin := time.Now()
		err := func() error {
			c, err := through(gateway.listens(0), site.port(), requestLimit)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(requestLimit))
			said := "POST / HTTP/1.1\r\n"
			if _, err := io.WriteString(c, said); err != nil {
				return err
			}
			got := make([]byte, len(said))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != said {
				return fmt.Errorf("%q, %w", got, err)
			}
			return nil
		}()
		took := time.Since(begin)
		if err != nil {
			t.Errorf("request %d: %v after %v", i, err, took)
			continue
		}
		if served++; took >= 500*time.Millisecond {
			late++
		}
	}
	t.Logf("%d requests are served, %d of them late", served, late)
	if late == served {
		t.Error("the far end that answers nothing stays the first one")
	}
}
