//go:build integration

package attack

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// firstWindow is how much of a stream may be sent before the first window comes.
const firstWindow = 16 << 10

// A flood is streams whose bytes nobody reads.
type flood struct {
	streams int
	size    int // bytes in each frame
	frames  int // in all, at most
	port    uint16
}

// run opens the streams on c, and sends as many bytes as the windows allow, also those that
// come later. It returns when nothing more may be sent for the moment.
func (f flood) run(c *client) error {
	var mu sync.Mutex
	wider := make(chan struct{}, 1)
	windows := make([]uint64, f.streams)
	sent := make([]uint64, f.streams)
	for i := range windows {
		windows[i] = firstWindow
	}
	go c.confirm(func(m message) {
		if m.kind == fWindow && m.numbers[0] < uint64(f.streams) {
			mu.Lock()
			windows[m.numbers[0]] = m.numbers[1]
			mu.Unlock()
			select {
			case wider <- struct{}{}:
			default:
			}
		}
	})
	var out []byte
	put := func(least int) error {
		if len(out) <= least {
			return nil
		}
		_, err := c.Write(out)
		out = out[:0]
		return err
	}
	junk := make([]byte, f.size)
	first := request(f.port)
	for i := range f.streams {
		out = data(out, uint64(i), 0, first)
		sent[i] = uint64(len(first))
	}
	for more, frames := true, 0; more && frames < f.frames; {
		more = false
		for i := range f.streams {
			mu.Lock()
			window := windows[i]
			mu.Unlock()
			for range max(1, 4<<10/f.size) { // of each stream in turn
				n := min(window-sent[i], uint64(f.size))
				if n == 0 {
					break
				}
				out = data(out, uint64(i), sent[i], junk[:n])
				sent[i] += n
				more = true
				frames++
			}
			if err := put(32 << 10); err != nil {
				return err
			}
		}
		if more {
			continue
		}
		if err := put(0); err != nil {
			return err
		}
		select {
		case <-wider:
			more = true
		case <-time.After(time.Second): // nothing more may be sent
		}
	}
	return put(0)
}

// shortResume is for tests that do not wait for the end of sessions without a carrier.
const shortResume = "[limits]\nresume = \"1s\"\n"

// floods attacks a server, and looks at what it costs.
func floods(t *testing.T, carriers int, f flood) {
	server, bridge := startServer(t, shortResume)
	gateway := startGateway(t, bridge, "")
	by := newBystander(t, gateway.listens(0))
	f.port = listen(t, deaf).port()
	by.served("before", 50)
	server.forgetPeak()
	base := server.usage()
	var wg sync.WaitGroup
	var all []net.Conn
	for range carriers {
		c := attack(t, bridge, newHello())
		all = append(all, c)
		wg.Go(func() {
			if err := f.run(c); err != nil {
				t.Logf("the attacker is cut off: %v", err)
			}
		})
	}
	wg.Wait()
	by.served("during", 50)
	server.grewLittle(base)
	for _, c := range all {
		c.Close()
	}
	server.recovers(base, back)
	by.served("after", 50)
}

// A client sends frames of one byte to destinations that do not read.
func TestFramesOfOneByte(t *testing.T) { floods(t, 1, flood{streams: 200, size: 1, frames: 6_000_000}) }

// A client sends large frames over thousands of streams to a destination that does not read.
func TestThousandsOfStreams(t *testing.T) {
	floods(t, 1, flood{streams: 4000, size: 16 << 10, frames: 20_000})
}

// The same in many sessions.
func TestManySessions(t *testing.T) { floods(t, 20, flood{streams: 500, size: 1000, frames: 20_000}) }

// Programs do not read their downloads, and the far end is honest.
func TestUnreadDownloads(t *testing.T) {
	_, bridge := startServer(t, "")
	gateway := startGateway(t, bridge, "")
	by := newBystander(t, gateway.listens(0))
	o := listen(t, loud)
	by.served("before", 50)
	base := gateway.usage()
	var all []net.Conn
	for range 200 {
		c, err := through(gateway.listens(0), o.port(), patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.CopyN(io.Discard, c, 512<<10) // so the windows grow
		all = append(all, c)
	}
	by.served("during", 50)
	gateway.grewLittle(base)
	for _, c := range all {
		c.Close()
	}
	gateway.recovers(base, back)
	by.served("after", 50)
}

// A far end sends what programs do not read, in frames of one byte.
func TestFarEndFloods(t *testing.T) {
	const programs = 200
	far := newFarEnd(t, func(c *farCarrier) {
		var mu sync.Mutex
		windows := map[uint64]uint64{}
		var order []uint64
		asked := make(chan struct{}, 1)
		go func() {
			defer close(asked)
			for {
				m, err := c.in.next()
				if err != nil {
					return
				}
				mu.Lock()
				switch id := m.numbers[0]; m.kind {
				case fData:
					if windows[id] == 0 {
						windows[id] = firstWindow
						order = append(order, id)
					}
				case fWindow:
					windows[id] = max(windows[id], m.numbers[1])
				}
				mu.Unlock()
				select {
				case asked <- struct{}{}:
				default:
				}
			}
		}()
		sent := map[uint64]uint64{}
		frames := 0
		for range asked {
			for more := true; more; {
				more = false
				mu.Lock()
				all := append([]uint64(nil), order...)
				limits := map[uint64]uint64{}
				for _, id := range all {
					limits[id] = windows[id]
				}
				mu.Unlock()
				var out []byte
				for _, id := range all {
					if sent[id] == 0 {
						out = data(out, id, 0, granted)
						sent[id] = uint64(len(granted))
					}
					for range 500 {
						if sent[id] >= limits[id] || frames > 6_000_000 {
							break
						}
						out = data(out, id, sent[id], []byte{0})
						sent[id]++
						frames++
						more = true
					}
					if len(out) > 32<<10 {
						if _, err := c.Write(out); err != nil {
							return
						}
						out = out[:0]
					}
				}
				if _, err := c.Write(out); err != nil {
					return
				}
			}
		}
	})
	gateway := startGateway(t, far.bridge, "[limits]\nhalf_open = \"5s\"\n")
	base := gateway.usage()
	var all []net.Conn
	for range programs {
		c, err := through(gateway.listens(0), 9, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
	}
	gateway.settles() // as much as it takes has come
	gateway.grewLittle(base)
	for _, c := range all {
		c.Close()
	}
	gateway.recovers(base, back)
}

// A client downloads as much as it can, and confirms nothing.
func TestNothingIsConfirmed(t *testing.T) {
	server, bridge := startServer(t, shortResume)
	gateway := startGateway(t, bridge, "")
	by := newBystander(t, gateway.listens(0))
	o := listen(t, loud)
	by.served("before", 50)
	base := server.usage()
	var all []net.Conn
	var wg sync.WaitGroup
	for range 20 {
		c := attack(t, bridge, newHello())
		all = append(all, c)
		var out []byte
		for id := range uint64(10) {
			out = data(out, id, 0, request(o.port()))
			out = frame(out, fWindow, id, 1<<40)
		}
		if _, err := c.Write(out); err != nil {
			t.Fatal(err)
		}
		wg.Go(c.discard)
	}
	by.served("during", 200)
	server.grewLittle(base)
	for _, c := range all {
		c.Close()
	}
	wg.Wait()
	server.recovers(base, back)
	by.served("after", 50)
}
