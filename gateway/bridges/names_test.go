package bridges

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
)

// named is a world with a bridge "n" at a name, beside "a". The system gives the addresses of
// system.
type named struct {
	*world
	system func() ([]netip.Addr, error)
	asked  atomic.Int64 // how often the system was
}

const (
	namedAt = "home.example.net:443"
	firstAt = "192.0.2.30:443"
	nextAt  = "192.0.2.31:443"
)

func newNamed(t testing.TB) *named {
	n := &named{world: newWorld(t)}
	n.far[firstAt], n.far[nextAt] = newFar(), newFar()
	n.system = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.30")}, nil }
	n.m.lookupHost = func(_ context.Context, host string) ([]netip.Addr, error) {
		if host != "home.example.net" {
			t.Errorf("the name %q", host)
		}
		n.asked.Add(1)
		return n.system()
	}
	return n
}

var errLookup = errors.New("no such host")

// Without another bridge, the system looks the name up, and not for each connection. When the
// bridge has moved, it is looked up again.
func TestNameSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNamed(t)
		s := n.set(config.PickFirst, namedAt)
		c, _ := open(t, s)
		echo(t, c)
		c.Close()
		for range 5 {
			n.far[firstAt].reset()
			<-time.After(20 * time.Second)
			c, _ := open(t, s)
			echo(t, c)
			c.Close()
		}
		if n.asked.Load() != 1 {
			t.Errorf("the system was asked %d times", n.asked.Load())
		}
		n.system = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.31")}, nil }
		n.far[firstAt].refuses.Store(true)
		n.far[firstAt].reset()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		s.Open(ctx, s.Route(0), example) // fails, and so shows it
		cancel()
		<-time.After(10 * time.Minute)
		c, _ = open(t, s)
		echo(t, c)
		c.Close()
		if n.far[nextAt].dials.Load() == 0 {
			t.Error("the new address was not used")
		}
	})
}

// A bridge that works is asked, and the system is not.
func TestNameThroughBridge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNamed(t)
		cfg := n.config(config.PickFirst, "a", namedAt)
		cfg.Routes = append(cfg.Routes, &config.Route{Via: cfg.Bridges[1:], Pick: config.PickFirst})
		s := n.apply(cfg)
		c, _ := open(t, s) // over a
		defer c.Close()
		answer := "192.0.2.31\n"
		n.far["a"].names.Store(&answer)
		over, err := s.Open(t.Context(), s.Route(1), example)
		if err != nil {
			t.Fatal(err)
		}
		echo(t, over)
		over.Close()
		if n.asked.Load() != 0 || n.far[nextAt].dials.Load() == 0 {
			t.Errorf("the system was asked %d times", n.asked.Load())
		}
		// It works no more, nor does the system: what was known before is used.
		n.system = func() ([]netip.Addr, error) { return nil, errLookup }
		answer = "nonsense"
		<-time.After(time.Hour)
		n.far[nextAt].reset()
		over, err = s.Open(t.Context(), s.Route(1), example)
		if err != nil {
			t.Fatal(err)
		}
		over.Close()
		if n.asked.Load() == 0 {
			t.Error("the system was not asked")
		}
	})
}

// Nobody knows the name.
func TestNameUnknown(t *testing.T) {
	for _, err := range []error{errLookup, nil} {
		synctest.Test(t, func(t *testing.T) {
			n := newNamed(t)
			n.system = func() ([]netip.Addr, error) { return nil, err }
			s := n.set(config.PickFirst, namedAt)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if c, err := s.Open(ctx, s.Route(0), example); err == nil {
				c.Close()
				t.Error("a request was opened")
			}
		})
	}
}

// A far end that knows that there is no such name is believed, and the system is not asked.
// Addresses of the far end's own network are no answer.
func TestNameAnswers(t *testing.T) {
	for answer, asks := range map[string]bool{"": false, "10.0.0.1\n": true, "127.0.0.1\n::1\n": true, "nonsense": true, "10.0.0.1\n192.0.2.31\n": false} {
		synctest.Test(t, func(t *testing.T) {
			n := newNamed(t)
			cfg := n.config(config.PickFirst, "a", namedAt)
			cfg.Routes = append(cfg.Routes, &config.Route{Via: cfg.Bridges[1:], Pick: config.PickFirst})
			s := n.apply(cfg)
			c, _ := open(t, s) // over a
			defer c.Close()
			n.far["a"].names.Store(&answer)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			over, err := s.Open(ctx, s.Route(1), example)
			if err == nil {
				over.Close()
			}
			if (err == nil) != (answer != "") || (n.asked.Load() > 0) != asks {
				t.Errorf("%q: the system was asked %d times, %v", answer, n.asked.Load(), err)
			}
			if answer == "" && doctor.Diagnose(doctor.Case{Err: err}).Kind != doctor.Names {
				t.Errorf("%v", err)
			}
		})
	}
}

// Nobody answers the question. A request fails in time, and says why; the question is not
// asked all the time.
func TestNameSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNamed(t)
		n.m.lookupHost = func(ctx context.Context, _ string) ([]netip.Addr, error) {
			n.asked.Add(1)
			<-ctx.Done()
			return nil, &net.DNSError{Err: "i/o timeout", Name: "home.example.net", IsTimeout: true}
		}
		s := n.set(config.PickFirst, namedAt)
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := s.Open(ctx, s.Route(0), example)
		if err == nil {
			c.Close()
		}
		if took := time.Since(begun); took > 2*lookupTime || doctor.Diagnose(doctor.Case{Err: err}).Kind != doctor.Names {
			t.Errorf("after %v: %v", took, err)
		}
		for range 60 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if c, err := s.Open(ctx, s.Route(0), example); err == nil {
				c.Close()
			}
			cancel()
			<-time.After(time.Second)
		}
		if n.asked.Load() > 14 {
			t.Errorf("asked %d times in 2 minutes", n.asked.Load())
		}
	})
}

// It is said once that the system is asked, without the name.
func TestNameSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNamed(t)
		var log bytes.Buffer
		n.m.log = slog.New(slog.NewTextHandler(&log, nil))
		n.system = func() ([]netip.Addr, error) {
			return nil, &net.DNSError{Err: "no such host", Name: "home.example.net", IsNotFound: true}
		}
		cfg := n.config(config.PickFirst, namedAt)
		cfg.Bridges[0].Name, cfg.Log.Private = "home", true
		s := n.apply(cfg)
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if c, err := s.Open(ctx, s.Route(0), example); err == nil {
				c.Close()
			}
			cancel()
			<-time.After(time.Minute)
		}
		if v := s.bridge("home").Status().Verdict; v == nil || v.Kind != doctor.Names {
			t.Errorf("%+v", v)
		}
		if strings.Count(log.String(), "the system looks up the name") != 1 || strings.Contains(log.String(), "example.net") {
			t.Errorf("the log: %s", &log)
		}
	})
}

// An address from which nothing comes back does not keep the others from being used. No more
// of them are used than make sense.
func TestNameFiltered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNamed(t)
		n.system = func() ([]netip.Addr, error) {
			all := []netip.Addr{netip.MustParseAddr("192.0.2.30"), netip.MustParseAddr("192.0.2.31")}
			return append(all, slices.Repeat(all[:1], 1000)...), nil
		}
		n.far[firstAt].block(true)
		s := n.set(config.PickFirst, namedAt)
		for range 3 {
			begun := time.Now()
			c, _ := open(t, s)
			echo(t, c)
			c.Close()
			if took := time.Since(begun); took > 2*addrStagger {
				t.Errorf("after %v", took)
			}
			n.far[nextAt].reset()
			<-time.After(time.Minute)
		}
		if addrs, _, _ := s.all[0].name.known("home.example.net"); len(addrs) != mostAddrs || addrs[0].String() != "192.0.2.31" {
			t.Errorf("%v", addrs)
		}
	})
}

// One of several addresses works. It comes first from then on.
func TestNameSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNamed(t)
		n.system = func() ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.30"), netip.MustParseAddr("192.0.2.31")}, nil
		}
		n.far[firstAt].refuses.Store(true)
		s := n.set(config.PickFirst, namedAt)
		for range 5 {
			c, _ := open(t, s)
			echo(t, c)
			c.Close()
			n.far[nextAt].reset()
			<-time.After(10 * time.Second)
		}
		if dials := n.far[firstAt].dials.Load(); dials > 2 { // two connections may have begun at the same time
			t.Errorf("%d dials of the address that does not work", dials)
		}
	})
}

// With an upstream proxy, the proxy looks names up and nobody else.
func TestNameNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNamed(t)
		cfg := n.config(config.PickFirst, namedAt)
		proxied := *cfg.Bridges[0].PT
		proxied.Proxy = "socks5://192.0.2.1:1080"
		cfg.Bridges[0].PT = &proxied
		n.far[namedAt] = newFar()
		s := n.apply(cfg)
		c, _ := open(t, s)
		echo(t, c)
		c.Close()
		if n.asked.Load() != 0 {
			t.Errorf("the system was asked %d times", n.asked.Load())
		}
	})
}
