package relay

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/stream"
)

// When places are needed, the half-closed pair that has been silent for longest ends first.
// One that is whole, or has moved bytes just before, goes on.
func TestHalves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := 0
		h := NewHalves(func() { ended++ })
		type open struct {
			app, far io.ReadWriteCloser
			done     chan error
		}
		all := map[string]open{}
		for _, x := range []struct{ name, group string }{{"whole", "a"}, {"first", "a"}, {"second", "b"}, {"moves", "a"}, {"third", "a"}} {
			app, client := bubblePipe()
			far, upstream := bubblePipe()
			o := open{app, far, make(chan error, 1)}
			go func() {
				o.done <- Run(t.Context(), source{client, false}, source{upstream, x.name != "whole"}, Options{
					HalfOpen: time.Hour, Halves: h, Groups: []string{x.group}})
			}()
			all[x.name] = o
			<-time.After(time.Second)
		}
		over := func(name string) (err error) {
			synctest.Wait()
			select {
			case err = <-all[name].done:
			default:
			}
			return err
		}
		if h.End("") {
			t.Error("one ends that was silent for 5 seconds")
		}
		<-time.After(LeastSilence - 2*time.Second)
		go all["moves"].app.Write([]byte("x"))
		io.ReadFull(all["moves"].far, make([]byte, 1))
		<-time.After(2 * time.Second)
		for _, x := range []struct{ group, name string }{{"b", "second"}, {"", "first"}, {"a", "third"}} {
			if !h.End(x.group) {
				t.Errorf("group %q: none ends", x.group)
			}
			if err := over(x.name); !errors.Is(err, ErrRoom) {
				t.Errorf("%s: %v", x.name, err)
			}
		}
		for _, group := range []string{"", "a", "b", "c"} {
			if h.End(group) {
				t.Errorf("group %q: one more ends", group)
			}
		}
		for _, name := range []string{"moves", "whole"} {
			if err := over(name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			all[name].app.Close()
			all[name].far.Close()
		}
		if synctest.Wait(); len(h.groups) != 0 || ended != 3 {
			t.Errorf("%d have ended, and there are %v", ended, h.groups)
		}
		if (*Halves)(nil).End("") {
			t.Error("one of none ends")
		}
	})
}

// A source is a side that may have ended its direction, and does not mind the end of the
// other one, so that only silence ends the pair.
type source struct {
	stream.Conn
	ended bool
}

func (s source) CloseWrite() error { return nil }

func (s source) WaitRead() error {
	if s.ended {
		return io.EOF
	}
	return s.Conn.WaitRead()
}

func (s source) Read(p []byte) (int, error) {
	if s.ended {
		return 0, io.EOF
	}
	return s.Conn.Read(p)
}
