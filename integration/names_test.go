//go:build integration

package integration

import (
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// An answerer adds the records of one answer, and gives its code. It may wait, until
// end is closed.
type answerer func(q dnsmessage.Question, b *dnsmessage.Builder, end <-chan struct{}) dnsmessage.RCode

// serveNames answers the DNS questions in a namespace, until the test's end.
func serveNames(t testing.TB, space string, answer answerer) {
	t.Helper()
	serveNamesAt(t, space, "127.0.0.1", answer)
}

// serveNamesAt is serveNames at another address of the loopback. Without a space it is that of
// the machine.
func serveNamesAt(t testing.TB, space, addr string, answer answerer) {
	t.Helper()
	var c net.PacketConn
	listen := func() (err error) {
		c, err = net.ListenPacket("udp", net.JoinHostPort(addr, "53"))
		return err
	}
	if space != "" {
		in(t, space, listen)
	} else if err := listen(); err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	answerTo := func(query []byte, from net.Addr) {
		var p dnsmessage.Parser
		h, err := p.Start(query)
		if err != nil {
			return
		}
		q, err := p.Question()
		if err != nil {
			return
		}
		h.Response, h.RecursionAvailable = true, true
		records := dnsmessage.NewBuilder(nil, h)
		records.StartQuestions()
		records.Question(q)
		records.StartAnswers()
		code := answer(q, &records, end)
		out, err := records.Finish()
		if err != nil {
			t.Error(err)
			return
		}
		out[3] = out[3]&0xf0 | byte(code) // RFC 1035 section 4.1.1
		c.WriteTo(out, from)
	}
	wg.Go(func() {
		for {
			buf := make([]byte, 2048)
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			wg.Go(func() { answerTo(buf[:n], from) })
		}
	})
	t.Cleanup(func() {
		close(end)
		c.Close()
		wg.Wait()
	})
}

// resource adds the address that a name leads to: the origin's in IPv4, and in IPv6
// one to which there is no way.
func resource(q dnsmessage.Question, b *dnsmessage.Builder) {
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 3600}
	switch q.Type {
	case dnsmessage.TypeA:
		b.AResource(head, dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}})
	case dnsmessage.TypeAAAA:
		b.AAAAResource(head, dnsmessage.AAAAResource{AAAA: [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1}})
	}
}

// onePair runs both boxes and the origin in a namespace, whose name server answers
// as told, and gives what runs curl there.
func onePair(t *testing.T, options string, answer answerer) (o *origin, curl func(...string) (out, stderr string, code int)) {
	space := newSpace(t, plainHosts)
	write(t, filepath.Join("/etc/netns", space), "resolv.conf", "nameserver 127.0.0.1\noptions "+options+"\n")
	o = serveOriginAt(t, space, "127.0.0.1:80", "127.0.0.1:443")
	serveNames(t, space, answer)
	s := setting{netns: space}
	server := run(t, "server", debugLog+"[[serve]]\ntransport = \"obfs4\"\nbind = \"127.0.0.1:9001\"\n"+openExit, s)
	run(t, "client", debugLog+"[listen]\nsocks5 = \"127.0.0.1:1080\"\n"+lineBridge(bridgeLine(t, server), "")+everythingVia("far"), s)
	return o, func(args ...string) (string, string, int) {
		return command(t, nil, append([]string{"ip", "netns", "exec", space, "curl", "-sS", "--max-time", "20", "--socks5-hostname", "127.0.0.1:1080"}, args...)...)
	}
}

// TestResolverFailsOnce: the one failure is one request's, and not that of all for as
// long as the name's other records are good.
func TestResolverFailsOnce(t *testing.T) {
	var mu sync.Mutex
	failed := false
	o, curl := onePair(t, "timeout:5 attempts:1", func(q dnsmessage.Question, b *dnsmessage.Builder, _ <-chan struct{}) dnsmessage.RCode {
		mu.Lock()
		defer mu.Unlock()
		if q.Type == dnsmessage.TypeA && !failed {
			failed = true
			return dnsmessage.RCodeServerFailure
		}
		resource(q, b)
		return dnsmessage.RCodeSuccess
	})
	if _, stderr, code := curl(o.http + "/hello"); code != 97 || !strings.Contains(stderr, "(4)") {
		t.Errorf("while the resolver fails: exit code %d, %s, want reply 4", code, stderr)
	}
	for range 2 {
		if out, stderr, code := curl(o.http + "/hello"); out != helloText {
			t.Errorf("when it works again: exit code %d, %q, %s", code, out, stderr)
		}
	}
}

// TestResolverIsSilent: a query that is not answered, here before the page has been
// loaded, does not hold up a connection to the addresses that are known.
func TestResolverIsSilent(t *testing.T) {
	loaded := make(chan struct{})
	o, curl := onePair(t, "timeout:30 attempts:2", func(q dnsmessage.Question, b *dnsmessage.Builder, end <-chan struct{}) dnsmessage.RCode {
		if q.Type == dnsmessage.TypeAAAA {
			select {
			case <-loaded:
			case <-end:
			}
		}
		resource(q, b)
		return dnsmessage.RCodeSuccess
	})
	if out, stderr, code := curl(o.http + "/hello"); out != helloText {
		t.Errorf("exit code %d, %q, %s", code, out, stderr)
	}
	close(loaded)
}
